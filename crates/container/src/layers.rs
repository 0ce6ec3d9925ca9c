//! Layers as single files: a directory packed into an erofs image, and an image mounted.
//!
//! A job may name image files as its layers; each container then mounts them for itself, and the
//! kernel keeps what is read from them once per container. A daemon that runs many containers of
//! one image should [`mount`] each image once, in a mount namespace of its own ([`own_namespace`])
//! so that nothing is left when it is killed, and name the directories instead.
//!
//! The same directory always gives the same bytes, hence the same digest: times and the file
//! system's own id are fixed, and mkfs.erofs walks directories in sorted order.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags};

use sha2::{Digest, Sha256};

#[derive(Clone, Copy, Debug, Default)]
pub struct PackOptions {
    /// lz4: about 0.6 of the size, twice the time to make; reads the same once warm.
    pub compressed: bool,
    /// All files belong to this user and group, whoever they belong to on disk.
    pub owner: Option<(u32, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    pub sha256: String,
    pub size_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("mkfs.erofs cannot be run; install erofs-utils")]
    NotInstalled(#[source] io::Error),
    #[error("mkfs.erofs failed: {0}")]
    Failed(String),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Packs `directory` into `file`, whole or not at all. Blocks: call it off the async threads.
pub fn pack(directory: &Path, file: &Path, options: PackOptions) -> Result<Packed, PackError> {
    let temporary = file.with_extension(format!("new-{}", std::process::id()));
    let result = pack_into(directory, &temporary, options);
    match &result {
        Ok(_) => fs::rename(&temporary, file)?,
        Err(_) => drop(fs::remove_file(&temporary)),
    }
    result
}

fn pack_into(directory: &Path, file: &Path, options: PackOptions) -> Result<Packed, PackError> {
    let mut command = Command::new("mkfs.erofs");
    command.args(["--quiet", "-T0", "-U00000000-0000-0000-0000-000000000000"]);
    if options.compressed {
        command.arg("-zlz4");
    }
    if let Some((uid, gid)) = options.owner {
        command
            .arg(format!("--force-uid={uid}"))
            .arg(format!("--force-gid={gid}"));
    }
    let output = command
        .arg(file)
        .arg(directory)
        .output()
        .map_err(PackError::NotInstalled)?;
    if !output.status.success() {
        return Err(PackError::Failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ));
    }
    let mut image = File::open(file)?;
    image.sync_all()?;
    let (mut hash, mut size_bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match image.read(&mut buffer)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                size_bytes += count as u64;
            }
        }
    }
    Ok(Packed {
        sha256: hex::encode(hash.finalize()),
        size_bytes,
    })
}

/// Leaves the host's mount namespace: mounts made from now on are seen by this process and what it
/// starts, and go away with them. What the host unmounts goes away here too.
///
/// Fails in a process that has threads already.
pub fn own_namespace() -> io::Result<()> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other(
            "a process with threads cannot change its mount namespace",
        ));
    }
    // SAFETY: there is one thread, so nobody's view changes unasked.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?)
}

/// Mounts an image on a directory, for all containers to share.
pub fn mount(image: &Path, target: &Path) -> io::Result<()> {
    let mount = open(image)?;
    Ok(rustix::mount::move_mount(
        &mount,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// A mount of an image that is not attached anywhere yet, and goes away with its descriptor.
///
/// Straight from the file where the kernel can (6.12 and later), through a loop device elsewhere.
pub fn open(image: &Path) -> io::Result<OwnedFd> {
    match open_source(image) {
        Err(Errno::NOTBLK) => {
            let (device, _keep_until_mounted) = crate::loop_device::attach(image, true)?;
            Ok(open_source(Path::new(&device))?)
        }
        other => Ok(other?),
    }
}

fn open_source(source: &Path) -> rustix::io::Result<OwnedFd> {
    let filesystem = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_flag(&filesystem, "ro")?;
    rustix::mount::fsconfig_set_string(&filesystem, "source", source)?;
    rustix::mount::fsconfig_create(&filesystem)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
