//! Pid 1 of a container: starts the app, reaps, forwards signals, reports how the app ended.
//!
//! It is a fork of the shim that never becomes another program, so a container needs nothing in
//! its image. It lives exactly as long as the app and dies with the shim; when it dies the kernel
//! kills everything else in the container.
//!
//! A stop goes to the main process first. When that one ends because of it and left others
//! behind (a shell does not pass a signal on), these get the signal too and are waited for: what
//! they are finishing is what the grace is for. The shim, not this, ends the grace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use container::Process;
use container::capability::{self, Capability};
use rustix::event::{PollFd, PollFlags, poll};

use crate::launch::{self, Launch, Stdio};
use crate::seccomp::Filter;
use crate::sys;

/// What pid 1 itself needs, until the app runs; then only KILL is left.
pub const OWN_CAPABILITIES: [Capability; 6] = [
    Capability::CHOWN,
    Capability::KILL,
    Capability::SETGID,
    Capability::SETUID,
    Capability::SETPCAP,
    Capability::NET_ADMIN,
];

const FORWARDED: [i32; 9] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGCONT,
    libc::SIGALRM,
];

#[derive(Clone)]
pub struct Init {
    pub process: Process,
    pub capabilities: u64,
    pub filter: Filter,
    /// Number of the descriptor on which the shim is.
    pub socket: RawFd,
}

/// From the shim to pid 1.
pub enum Order {
    Go,
    Signal(i32),
    Stop(i32),
}

/// From pid 1 to the shim.
pub enum Report {
    /// Comes with our side of the terminal.
    Terminal,
    Started,
    NotStarted {
        code: i32,
        error: String,
    },
    /// Raw wait status of the app.
    Ended(i32),
}

impl Order {
    pub fn to_bytes(&self) -> Vec<u8> {
        let (kind, number) = match self {
            Order::Go => (b'g', 0),
            Order::Signal(signal) => (b's', *signal),
            Order::Stop(signal) => (b't', *signal),
        };
        message(kind, number, "")
    }

    fn from_bytes(bytes: &[u8]) -> Option<Order> {
        let (kind, number, _) = parts(bytes)?;
        match kind {
            b'g' => Some(Order::Go),
            b's' => Some(Order::Signal(number)),
            b't' => Some(Order::Stop(number)),
            _ => None,
        }
    }
}

impl Report {
    fn to_bytes(&self) -> Vec<u8> {
        match self {
            Report::Terminal => message(b'p', 0, ""),
            Report::Started => message(b'S', 0, ""),
            Report::NotStarted { code, error } => message(b'F', *code, error),
            Report::Ended(status) => message(b'X', *status, ""),
        }
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Report> {
        let (kind, number, text) = parts(bytes)?;
        match kind {
            b'p' => Some(Report::Terminal),
            b'S' => Some(Report::Started),
            b'F' => Some(Report::NotStarted {
                code: number,
                error: text,
            }),
            b'X' => Some(Report::Ended(number)),
            _ => None,
        }
    }
}

fn message(kind: u8, number: i32, text: &str) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&number.to_ne_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn parts(bytes: &[u8]) -> Option<(u8, i32, String)> {
    let (kind, rest) = bytes.split_first()?;
    let (number, text) = rest.split_first_chunk()?;
    Some((
        *kind,
        i32::from_ne_bytes(*number),
        String::from_utf8_lossy(text).into_owned(),
    ))
}

struct State<'a> {
    init: &'a Init,
    socket: BorrowedFd<'a>,
    stdio: Option<Stdio>,
    main: Option<i32>,
    stop_signal: Option<i32>,
    /// The main process ended while stopping; the rest is being waited for.
    main_status: Option<i32>,
}

/// Never returns: pid 1 ends with `_exit`, so that nothing of the shim runs twice.
pub fn run(init: &Init) -> ! {
    // SAFETY: the descriptor was inherited for this, and stays open to the end.
    let socket = unsafe { BorrowedFd::borrow_raw(init.socket) };
    if let Err(error) = serve(init, socket) {
        let report = Report::NotStarted {
            code: 125,
            error: format!("the container's first process: {error}"),
        };
        drop(sys::send_message(socket, &report.to_bytes(), None));
    }
    // SAFETY: ends the process and with it the container.
    unsafe { libc::_exit(1) }
}

fn serve(init: &Init, socket: BorrowedFd<'_>) -> io::Result<()> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64)?;
    close_others(init.socket)?;
    hide_arguments();
    let signals = sys::signals()?;
    raise_loopback()?;
    let stdio = match init.process.terminal {
        Some(size) => {
            let (ours, theirs) = sys::terminal(size, init.process.uid)?;
            sys::send_message(socket, &Report::Terminal.to_bytes(), Some(ours.as_fd()))?;
            Stdio::Terminal(theirs)
        }
        // SAFETY: libcontainer has put the pipes there, and nobody else owns them in this process.
        None => Stdio::Pipes([0, 1, 2].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })),
    };
    let mut state = State {
        init,
        socket,
        stdio: Some(stdio),
        main: None,
        stop_signal: None,
        main_status: None,
    };
    loop {
        let mut ready = [
            PollFd::new(&socket, PollFlags::IN),
            PollFd::new(&signals, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let [from_shim, from_kernel] = ready.map(|one| !one.revents().is_empty());
        if from_shim {
            let (bytes, _) = sys::receive_message(socket)?;
            match Order::from_bytes(&bytes) {
                Some(order) => state.obey(order)?,
                // The shim is gone, and with it everybody who could look after this container.
                None => return Ok(()),
            }
        }
        if from_kernel {
            while let Some(signal) = sys::next_signal(&signals) {
                if signal == libc::SIGCHLD {
                    state.reap()?;
                } else if FORWARDED.contains(&signal)
                    && let Some(main) = state.main
                {
                    sys::kill(main, signal);
                }
            }
        }
    }
}

impl State<'_> {
    fn obey(&mut self, order: Order) -> io::Result<()> {
        // Once the main process has been waited for, its pid may be another's.
        let main = self.main_status.is_none().then_some(self.main).flatten();
        match (order, main) {
            (Order::Go, None) if self.main.is_none() => self.start()?,
            (Order::Signal(signal) | Order::Stop(signal), None) if self.main.is_some() => {
                sys::kill(-1, signal)
            }
            (Order::Signal(signal), Some(main)) => sys::kill(main, signal),
            (Order::Stop(signal), Some(main)) => {
                self.stop_signal = Some(signal);
                sys::kill(main, signal);
            }
            _ => {}
        }
        Ok(())
    }

    fn start(&mut self) -> io::Result<()> {
        let Some(stdio) = self.stdio.take() else {
            return Ok(());
        };
        let (report, report_of_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // SAFETY: this process has one thread.
        let pid = sys::check(unsafe { libc::fork() }.into())? as i32;
        if pid == 0 {
            let launch = Launch {
                process: &self.init.process,
                capabilities: self.init.capabilities,
                filter: &self.init.filter,
                stdio,
                parent_death_signal: None,
            };
            launch::become_program(launch, report_of_child);
        }
        drop(report_of_child);
        self.main = Some(pid);
        // The app's streams must end when the app ends: keep none of them.
        drop(stdio);
        stand_in_for_stdio()?;
        match launch::read_report(report)? {
            None => self.send(&Report::Started)?,
            Some(failure) => {
                self.send(&Report::NotStarted {
                    code: failure.code,
                    error: failure.error,
                })?;
                self.end()
            }
        }
        // Whatever the container does to pid 1 from here on, it can only send signals.
        launch::set_capabilities(capability::mask([Capability::KILL]))?;
        self.init.filter.load()
    }

    fn reap(&mut self) -> io::Result<()> {
        while let Some((pid, status)) = sys::reap(-1) {
            if Some(pid) != self.main {
                continue;
            }
            match self.stop_signal {
                Some(signal) => {
                    self.main_status = Some(status);
                    sys::kill(-1, signal);
                }
                None => {
                    self.send(&Report::Ended(status))?;
                    self.end()
                }
            }
        }
        if let Some(status) = self.main_status
            && !has_children()
        {
            self.send(&Report::Ended(status))?;
            self.end()
        }
        Ok(())
    }

    fn send(&self, report: &Report) -> io::Result<()> {
        sys::send_message(self.socket, &report.to_bytes(), None)
    }

    fn end(&self) -> ! {
        // SAFETY: ends the process and with it the container.
        unsafe { libc::_exit(0) }
    }
}

fn has_children() -> bool {
    // SAFETY: the structure is written by the call only.
    unsafe {
        let mut found: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(
            libc::P_ALL,
            0,
            &mut found,
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
        ) == 0
    }
}

/// Everything else the shim had open is none of the container's business.
fn close_others(socket: RawFd) -> io::Result<()> {
    assert!(socket > 2, "the shim keeps its standard descriptors open");
    // SAFETY: this process never returns to code that owns one of these.
    unsafe {
        if socket > 3 {
            sys::check(libc::syscall(libc::SYS_close_range, 3, socket - 1, 0))?;
        }
        sys::check(libc::syscall(libc::SYS_close_range, socket + 1, u32::MAX, 0))?;
    }
    Ok(())
}

fn stand_in_for_stdio() -> io::Result<()> {
    let null: OwnedFd = File::options().read(true).write(true).open("/dev/null")?.into();
    for to in 0..3 {
        // SAFETY: nobody owns 0 to 2 any more.
        sys::check(unsafe { libc::dup2(null.as_raw_fd(), to) }.into())?;
    }
    if null.as_raw_fd() <= 2 {
        std::mem::forget(null);
    }
    Ok(())
}

/// The shim's arguments name a directory of the host, and anybody can read those of pid 1.
fn hide_arguments() {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else {
        return;
    };
    let Some((_, fields)) = stat.rsplit_once(") ") else {
        return;
    };
    let mut fields = fields
        .split(' ')
        .skip(45)
        .map(|field| field.parse::<usize>().unwrap_or(0));
    let (Some(start), Some(end)) = (fields.next(), fields.next()) else {
        return;
    };
    let name = b"flynn-init";
    if start == 0 || end <= start + name.len() {
        return;
    }
    // SAFETY: the kernel says that the arguments are there, and in this process nobody reads them again.
    unsafe {
        let area = std::slice::from_raw_parts_mut(start as *mut u8, end - start);
        area.fill(0);
        area[..name.len()].copy_from_slice(name);
    }
    // SAFETY: a name of fewer than 16 bytes with its zero.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"flynn-init".as_ptr()) };
}

fn raise_loopback() -> io::Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: a zeroed request is valid, and the name fits with its zero.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        sys::check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request).into())?;
    }
    Ok(())
}
