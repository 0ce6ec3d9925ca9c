//! How much of what was written to a TCP connection the other side has taken.
//!
//! It is here because the kernel's answer comes by a call that has no safe interface.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Of one connection, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Bytes that the other side's kernel has confirmed, and one for having connected.
    pub acknowledged_bytes: u64,
    /// What the other side's kernel has space for: the most that its program can have left unread.
    pub window_bytes: u32,
}

// Places in the kernel's `struct tcp_info`, which only ever grows at its end (include/uapi/linux/tcp.h).
const BYTES_ACKED: usize = 120;
const SND_WND: usize = 228;
const LENGTH: usize = 232;

/// Linux 5.4 is the first to tell the window.
pub fn delivery(socket: impl AsFd) -> io::Result<Delivery> {
    let mut info = [0_u8; LENGTH];
    let mut length = LENGTH as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which has as many, and `length` itself.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if (length as usize) < LENGTH {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel does not tell a connection's window",
        ));
    }
    let acknowledged = info[BYTES_ACKED..BYTES_ACKED + 8]
        .try_into()
        .expect("eight bytes");
    let window = info[SND_WND..SND_WND + 4].try_into().expect("four bytes");
    Ok(Delivery {
        acknowledged_bytes: u64::from_ne_bytes(acknowledged),
        window_bytes: u32::from_ne_bytes(window),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    #[test]
    fn what_the_other_side_has_taken_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut there, _) = listener.accept().unwrap();
        let before = delivery(&here).unwrap();
        assert!(before.window_bytes > 0);
        here.write_all(&[7; 1000]).unwrap();
        there.read_exact(&mut [0; 1000]).unwrap();
        // Loopback acknowledges at once, or after its delay; this only waits for that.
        let deadline = Instant::now() + Duration::from_secs(10);
        while delivery(&here).unwrap().acknowledged_bytes < before.acknowledged_bytes + 1000 {
            assert!(
                Instant::now() < deadline,
                "the bytes were read and not acknowledged"
            );
            std::thread::yield_now();
        }
    }
}
