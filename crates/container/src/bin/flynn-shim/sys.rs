//! System calls that no safe library wraps.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use container::WindowSize;

pub fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Sets attributes of a mount that is not attached yet; with `owner`, maps its ids through that
/// user namespace.
pub fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    owner: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set | owner.map_or(0, |_| libc::MOUNT_ATTR_IDMAP),
        attr_clr: 0,
        propagation: 0,
        userns_fd: owner.map_or(0, |owner| owner.as_raw_fd() as u64),
    };
    // SAFETY: the structure outlives the call, and its size is passed along.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &attributes,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// A user namespace in which ids 0.. are `base`.. of the host, kept alive by the descriptor only.
///
/// A namespace exists through a process; this one lives just long enough to be looked at.
pub fn user_namespace(base: u32, count: u32) -> io::Result<OwnedFd> {
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    // SAFETY: this process has one thread, and the child only calls read and _exit.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0) })?;
    if pid == 0 {
        let mut byte = 0u8;
        // SAFETY: as above; the read ends when the parent lets go, or dies.
        unsafe {
            libc::close(ours.as_raw_fd());
            libc::read(theirs.as_raw_fd(), (&raw mut byte).cast(), 1);
            libc::_exit(0)
        }
    }
    let map = format!("0 {base} {count}");
    let namespace = fs::write(format!("/proc/{pid}/uid_map"), &map)
        .and_then(|()| fs::write(format!("/proc/{pid}/gid_map"), &map))
        .and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
    drop(theirs);
    drop(ours.write_all(b"x"));
    wait_for(pid as i32)?;
    Ok(namespace?.into())
}

/// Waits for one child to end; its raw status.
pub fn wait_for(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is writable.
        match check(unsafe { libc::waitpid(pid, &mut status, 0) }.into()) {
            Ok(_) => return Ok(status),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
    }
}

/// A child that has ended, if there is one: its pid and raw status. `pid` -1 means any.
pub fn reap(pid: i32) -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is writable.
    let ended = unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) };
    (ended > 0).then_some((ended, status))
}

pub fn kill(pid: i32, signal: i32) {
    // SAFETY: no memory is involved. A failure means that nobody is there to be told.
    unsafe { libc::kill(pid, signal) };
}

/// Blocks all signals and hands them out through a descriptor.
pub fn signals() -> io::Result<File> {
    // SAFETY: the set is initialised by sigfillset before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&mut set);
        check(libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()).into())?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())?;
        Ok(File::from_raw_fd(fd as RawFd))
    }
}

/// The next signal from [`signals`]: its number.
pub fn next_signal(mut signals: &File) -> Option<i32> {
    let mut bytes = [0; size_of::<libc::signalfd_siginfo>()];
    match signals.read(&mut bytes) {
        Ok(count) if count == bytes.len() => {
            Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as i32)
        }
        _ => None,
    }
}

pub fn prctl(option: i32, argument: u64) -> io::Result<()> {
    // SAFETY: only options with a plain number as argument are used.
    check(unsafe { libc::prctl(option, argument, 0, 0, 0) }.into())?;
    Ok(())
}

/// A pair of sockets on which every message stays whole.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one message, with a descriptor on top if there is one.
pub fn send_message(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors));
    }
    rustix::net::sendmsg(
        socket,
        &[io::IoSlice::new(message)],
        &mut control,
        rustix::net::SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one message; empty: the other side is gone.
pub fn receive_message(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; 4096];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [io::IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(
            socket,
            &mut slices,
            &mut control,
            rustix::net::RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(rustix::io::Errno::INTR) => continue,
            other => break other?,
        }
    };
    let mut descriptor = None;
    for message in control.drain() {
        if let rustix::net::RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptors.next();
        }
    }
    bytes.truncate(received.bytes);
    Ok((bytes, descriptor))
}

/// A new terminal in the container of the calling process: our side, and the process's.
pub fn terminal(size: WindowSize, owner_uid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let ours: OwnedFd = rustix::fs::open(
        "/dev/pts/ptmx",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    rustix::pty::unlockpt(&ours)?;
    let flags =
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
    resize(ours.as_fd(), size)?;
    rustix::fs::fchown(&theirs, Some(rustix::fs::Uid::from_raw(owner_uid)), None)?;
    Ok((ours, theirs))
}

pub fn resize(terminal: BorrowedFd<'_>, size: WindowSize) -> io::Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

pub fn set_nonblocking(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(descriptor)?;
    Ok(rustix::fs::fcntl_setfl(
        descriptor,
        flags | rustix::fs::OFlags::NONBLOCK,
    )?)
}

/// Raises the limit of open files as far as permitted, for this process and all it starts.
///
/// Without CAP_SYS_RESOURCE the hard limit is the end; that is a smaller limit, not a failure.
pub fn limit_open_files(wanted: u64) -> io::Result<()> {
    let set = |limit: u64| {
        let limit = libc::rlimit {
            rlim_cur: limit,
            rlim_max: limit,
        };
        // SAFETY: the structure outlives the call.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }.into())
    };
    if set(wanted).is_ok() {
        return Ok(());
    }
    let mut present = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: as above.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut present) }.into())?;
    set(wanted.min(present.rlim_max))?;
    Ok(())
}
