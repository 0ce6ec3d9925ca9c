//! A person at a terminal: `flynn run` and `flynn exec` through a real pseudo terminal.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, PATIENCE, Process, program, server};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    pty::{OpenptFlags, openpt, ptsname, unlockpt},
    termios::{Winsize, tcgetattr, tcsetwinsize},
};

/// Printed by the shell only: what is typed is echoed too, and must not look like an answer.
const SAY: &str = "printf '%s%s\\n'";

/// `flynn` on a terminal of its own, and the person in front of it.
struct Terminal {
    keyboard: File,
    /// Kept open, so that reading goes on being possible when `flynn` has ended.
    screen: OwnedFd,
    before: String,
    flynn: Child,
    seen: Vec<u8>,
}

impl Terminal {
    fn run(cluster: &Cluster, args: &[&str], columns: u16, rows: u16) -> Result<Terminal> {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        unlockpt(&keyboard)?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let screen = rustix::fs::open(ptsname(&keyboard, Vec::new())?, flags, Mode::empty())?;
        set_size(&keyboard, columns, rows)?;
        let before = settings(&screen)?;
        let end = || -> Result<Stdio> { Ok(screen.try_clone()?.into()) };
        // Without a session of its own it would not be told of a change of size.
        let mut command: Command = cluster.inside(Path::new("setsid"));
        command
            .arg("--ctty")
            .arg(program("flynn"))
            .args(args)
            .env("TERM", "xterm");
        let flynn = command.stdin(end()?).stdout(end()?).stderr(end()?).spawn()?;
        Ok(Terminal {
            keyboard: File::from(keyboard),
            screen,
            before,
            flynn,
            seen: vec![],
        })
    }

    fn types(&mut self, keys: &str) -> Result<()> {
        Ok(self.keyboard.write_all(keys.as_bytes())?)
    }

    fn is_resized(&self, columns: u16, rows: u16) -> Result<()> {
        set_size(&self.keyboard, columns, rows)
    }

    /// Reads until `text` is on the screen, and forgets what came up to its end.
    fn shows(&mut self, text: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let found = self
                .seen
                .windows(text.len())
                .position(|window| window == text.as_bytes());
            if let Some(position) = found {
                self.seen.drain(..position + text.len());
                return Ok(());
            }
            let left = PATIENCE.saturating_sub(began.elapsed());
            let is_more = !left.is_zero() && self.reads(left.as_millis() as i64)? > 0;
            ensure!(
                is_more,
                "{text:?} does not come after {:?}",
                String::from_utf8_lossy(&self.seen)
            );
        }
    }

    fn reads(&mut self, limit_ms: i64) -> Result<usize> {
        let mut ready = [PollFd::new(&self.keyboard, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: limit_ms / 1000,
            tv_nsec: limit_ms % 1000 * 1_000_000,
        };
        if poll(&mut ready, Some(&limit))? == 0 {
            return Ok(0);
        }
        let mut buffer = [0; 64 << 10];
        let length = self.keyboard.read(&mut buffer)?;
        self.seen.extend(&buffer[..length]);
        Ok(length)
    }

    /// Waits for the end of `flynn`; the terminal must be as it was before.
    fn ends(mut self) -> Result<(ExitStatus, Vec<u8>)> {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.flynn.try_wait()? {
                break status;
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "flynn does not end: {:?}",
                String::from_utf8_lossy(&self.seen)
            );
            self.reads(20)?;
        };
        while self.reads(0)? > 0 {}
        let after = settings(&self.screen)?;
        ensure!(
            after == self.before,
            "the terminal was left as {after}, and had been {}",
            self.before
        );
        Ok((status, std::mem::take(&mut self.seen)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.flynn.kill();
        let _ = self.flynn.wait();
    }
}

fn set_size(terminal: impl AsFd, columns: u16, rows: u16) -> Result<()> {
    Ok(tcsetwinsize(
        terminal,
        Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )?)
}

fn settings(terminal: &OwnedFd) -> Result<String> {
    let settings = tcgetattr(terminal)?;
    let modes = (
        settings.input_modes,
        settings.output_modes,
        settings.control_modes,
        settings.local_modes,
    );
    Ok(format!("{modes:?}"))
}

/// Not simply the first that is up: a job just left may be listed a moment longer.
fn web_job(cluster: &Cluster) -> Result<String> {
    let jobs = cluster.jobs("shop", "up")?;
    let web = jobs.iter().find(|job| job["type"] == "web");
    let id = web.and_then(|job| job["id"].as_str());
    Ok(id.context("no web job is up")?.to_owned())
}

fn a_shell_is_as_it_would_be_here(cluster: &Cluster, args: &[&str]) -> Result<()> {
    let mut terminal = Terminal::run(cluster, args, 132, 43)?;
    // Typed at once: nobody waits for a prompt they know will come.
    terminal.types(&format!("{SAY} rea dy; stty size\r"))?;
    terminal.shows("ready\r\n43 132\r\n")?;
    terminal.shows("$ ")?;

    // From here on at the prompt: bash itself, on any terminal, can miss keys while it handles ctrl-c.
    terminal.is_resized(101, 29)?;
    // Size and keys go the same way, but nothing says that the keys wait for the size to have left.
    terminal.types(&format!(
        "until [ \"$(stty size)\" = '29 101' ]; do sleep 0.05; done; {SAY} resi zed\r"
    ))?;
    terminal.shows("resized\r\n")?;
    terminal.shows("$ ")?;

    // A process of its own says that it runs: a key pressed before it is there would be for the shell.
    terminal.types(&format!("sh -c \"{SAY} slee ping; exec sleep 100\"\r"))?;
    terminal.shows("sleeping\r\n")?;
    terminal.types("\x03")?;
    terminal.shows("^C")?;
    terminal.shows("$ ")?;
    terminal.types(&format!("{SAY} still he$?\r"))?;
    terminal.shows("stillhe130\r\n")?;
    terminal.shows("$ ")?;

    terminal.types(&format!("{SAY} $TERM $(tty)\r"))?;
    terminal.shows("xterm/dev/pts/0\r\n")?;
    terminal.shows("$ ")?;
    terminal.types("exit 3\r")?;
    let (status, _) = terminal.ends()?;
    ensure!(status.code() == Some(3), "it ended with {status}");
    Ok(())
}

#[test]
fn a_shell_in_a_job_is_as_it_would_be_here() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("hello"))], 1)?;
    a_shell_is_as_it_would_be_here(&cluster, &["-a", "shop", "run", "bash", "--norc"])?;

    let job = &web_job(&cluster)?;
    a_shell_is_as_it_would_be_here(&cluster, &["-a", "shop", "exec", job, "bash", "--norc"])?;

    // Ctrl-d ends it, and hanging up does not leave the job behind.
    let mut terminal = Terminal::run(&cluster, &["-a", "shop", "run", "bash", "--norc"], 80, 24)?;
    terminal.shows("$ ")?;
    terminal.types("\x04")?;
    ensure!(terminal.ends()?.0.code() == Some(0));
    let mut terminal = Terminal::run(&cluster, &["-a", "shop", "run", "bash", "--norc"], 80, 24)?;
    terminal.shows("$ ")?;
    drop(terminal);
    cluster.wait("the job to end", || {
        Ok((cluster.jobs("shop", "up")?.len() == 1).then_some(()))
    })?;
    cluster.finish()
}

#[test]
fn much_output_arrives_whole() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("hello"))], 1)?;
    let (script, lines) = ("yes | head -c 50M", 25 << 20);
    let job = &web_job(&cluster)?;
    let run = ["-a", "shop", "run", "bash", "-c", script];
    let exec = ["-a", "shop", "exec", job, "bash", "-c", script];
    for args in [run.as_slice(), exec.as_slice()] {
        let began = Instant::now();
        let output = cluster.try_flynn(args)?;
        let took = began.elapsed();
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        ensure!(
            output.stdout.len() == lines * 2,
            "{} bytes came",
            output.stdout.len()
        );
        println!(
            "{} to a pipe: {:.0} MB/s",
            args[2],
            output.stdout.len() as f64 / 1e6 / took.as_secs_f64()
        );

        let began = Instant::now();
        let (status, screen) = Terminal::run(&cluster, args, 80, 24)?.ends()?;
        let took = began.elapsed();
        ensure!(status.success(), "it ended with {status}");
        ensure!(screen.len() == lines * 3, "{} bytes came", screen.len());
        ensure!(screen.chunks(3).all(|line| line == b"y\r\n"), "lines are torn");
        println!(
            "{} to a terminal: {:.0} MB/s",
            args[2],
            screen.len() as f64 / 1e6 / took.as_secs_f64()
        );
    }
    cluster.finish()
}
