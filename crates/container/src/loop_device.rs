//! Files as block devices.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// A block device showing the file, gone when its last user is.
pub fn attach(file: &Path, read_only: bool) -> io::Result<(String, OwnedFd)> {
    let backing = File::options().read(true).write(!read_only).open(file)?;
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    loop {
        // SAFETY: the call takes no argument.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
        let path = format!("/dev/loop{number}");
        let device = File::options().read(true).write(!read_only).open(&path)?;
        // SAFETY: plain numbers and arrays; all zeroes is a valid value.
        let mut configuration: LoopConfiguration = unsafe { std::mem::zeroed() };
        configuration.fd = backing.as_raw_fd() as u32;
        configuration.info.flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
        // SAFETY: the structure outlives the call and has the kernel's layout.
        match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &configuration) }) {
            Ok(_) => return Ok((path, device.into())),
            // Somebody else was given the same free number and was quicker: ask for another.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => continue,
            Err(error) => return Err(error),
        }
    }
}

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_config` and `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopConfiguration {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
