//! The container's root: layers, overlay, binds and files, in a mount namespace of the shim's own.
//!
//! Nothing of this is visible on the host, and all of it goes when the last process in the shim's
//! and the container's namespaces is gone, however that happens.
//!
//! Ids: files in layers and binds belong to users of the image (0 is its root). Mounts that are
//! *idmapped* show them to the host as users of the container's own range, which the container's
//! user namespace maps back. The writable layer is not mapped (overlayfs refuses that) but simply
//! owned by the mapped root.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use container::{Bind, BindKind, IDS_PER_CONTAINER as IDS, InlineFile, Spec, TEMP_DISK_IN_MEMORY_BYTES_MAX};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::sys;

/// Where mounts are made before they become the container's root.
///
/// The container's root user is nobody on the host and must be able to walk there, which rules
/// out the job's own directory. What a candidate normally holds is hidden from the shim only.
const SCRATCH_CANDIDATES: [&str; 5] = ["/mnt", "/media", "/srv", "/dev/shm", "/run"];

pub struct RootFs {
    /// The finished root.
    pub root: PathBuf,
    /// A place in memory for libcontainer's own files.
    pub runtime_directory: PathBuf,
    pub bundle: PathBuf,
}

/// The way back from the mount namespace in which the root was made.
pub struct HostNamespace(OwnedFd);

/// Goes into a mount namespace of our own.
pub fn enter_own_namespace() -> anyhow::Result<HostNamespace> {
    let host = fs::File::open("/proc/self/ns/mnt")?;
    container::layers::own_namespace().context("new mount namespace")?;
    Ok(HostNamespace(host.into()))
}

impl HostNamespace {
    /// Goes back. The container has its own copy of its root by now; ours, with its copies of all
    /// the host's mounts, would keep each of these busy for as long as the container lives.
    pub fn enter_again(self, job_dir: &Path) -> anyhow::Result<()> {
        // SAFETY: plain numbers; this process has one thread.
        sys::check(unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNS) }.into())
            .context("back to the host's mount namespace")?;
        Ok(std::env::set_current_dir(job_dir)?)
    }
}

pub fn prepare(spec: &Spec, job_dir: &Path) -> anyhow::Result<RootFs> {
    let owner = sys::user_namespace(spec.host_id_base, IDS).context("user namespace for mounts")?;
    // Everything that comes from a path on the host is opened before the scratch hides any.
    let layers = spec
        .layers
        .iter()
        .map(|layer| open_layer(layer, owner.as_fd()))
        .collect::<Result<Vec<_>, _>>()?;
    let binds = spec
        .binds
        .iter()
        .map(|bind| open_bind(bind, owner.as_fd()))
        .collect::<Result<Vec<_>, _>>()?;
    let upper = upper(spec, job_dir)?;

    let scratch = scratch(job_dir)?;
    attach(
        &new_mount(
            "tmpfs",
            &[("mode", "0755"), ("size", "4m")],
            MountAttrFlags::empty(),
        )?,
        &scratch,
    )?;
    let directory = |name: &str, mode: u32| -> anyhow::Result<PathBuf> {
        let path = scratch.join(name);
        fs::DirBuilder::new()
            .mode(mode)
            .create(&path)
            .with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    };
    let written = directory("written", 0o755)?;
    attach(&upper, &written)?;
    for name in ["upper", "work"] {
        let path = written.join(name);
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .with_context(|| format!("make {}", path.display()))?;
        chown(&path, Some(spec.host_id_base), Some(spec.host_id_base))?;
    }
    let mut lower = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let path = directory(&format!("layer{index}"), 0o755)?;
        attach(layer, &path)?;
        lower.push(path);
    }
    if lower.is_empty() {
        lower.push(directory("empty", 0o755)?);
    }
    let root = directory("root", 0o755)?;
    let overlay = overlay(&lower, &written).context("overlay of the layers")?;
    attach(&overlay, &root)?;

    let inside = Inside {
        root: overlay,
        owner: spec.host_id_base,
    };
    for file in &spec.files {
        inside
            .place_file(file)
            .with_context(|| format!("place {}", file.path.display()))?;
    }
    for (bind, mount) in spec.binds.iter().zip(&binds) {
        inside
            .place_bind(bind, mount)
            .with_context(|| format!("mount at {}", bind.target.display()))?;
    }
    Ok(RootFs {
        root,
        runtime_directory: directory("runtime", 0o700)?,
        bundle: directory("bundle", 0o700)?,
    })
}

fn scratch(job_dir: &Path) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let candidate = SCRATCH_CANDIDATES
        .into_iter()
        .map(Path::new)
        .find(|path| path.is_dir() && !job_dir.starts_with(path) && !program.starts_with(path));
    match candidate {
        Some(path) => Ok(path.to_owned()),
        None => bail!("none of {SCRATCH_CANDIDATES:?} is there to mount a container's root on"),
    }
}

fn open_layer(layer: &Path, owner: BorrowedFd<'_>) -> anyhow::Result<OwnedFd> {
    let what = || format!("layer {}", layer.display());
    let mount = if fs::metadata(layer).with_context(what)?.is_dir() {
        clone_mount(layer, false).with_context(what)?
    } else {
        container::layers::open(layer).with_context(what)?
    };
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV;
    sys::set_mount_attributes(mount.as_fd(), attributes, Some(owner)).with_context(what)?;
    Ok(mount)
}

fn new_mount(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> anyhow::Result<OwnedFd> {
    let filesystem = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        rustix::mount::fsconfig_set_string(&filesystem, *name, *value)?;
    }
    rustix::mount::fsconfig_create(&filesystem)?;
    Ok(rustix::mount::fsmount(
        &filesystem,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

fn clone_mount(path: &Path, with_mounts_below: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if with_mounts_below {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

fn attach(mount: &OwnedFd, target: &Path) -> anyhow::Result<()> {
    rustix::mount::move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("mount at {}", target.display()))
}

/// The file system that takes what the container writes.
fn upper(spec: &Spec, job_dir: &Path) -> anyhow::Result<OwnedFd> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    if spec.temp_disk_bytes <= TEMP_DISK_IN_MEMORY_BYTES_MAX {
        let size = spec.temp_disk_bytes.to_string();
        return new_mount("tmpfs", &[("mode", "0755"), ("size", &size)], attributes)
            .context("temporary disk");
    }
    let file = job_dir.join("disk.ext4");
    let result = disk(&file, spec.temp_disk_bytes, attributes).context("temporary disk");
    // The loop device keeps it; without a name it cannot be left behind.
    drop(fs::remove_file(&file));
    result
}

fn disk(file: &Path, bytes: u64, attributes: MountAttrFlags) -> anyhow::Result<OwnedFd> {
    fs::File::create(file)?.set_len(bytes)?;
    // No journal: nobody reads this disk after a crash. Lazy tables: a large one is made at once.
    let output = Command::new("mkfs.ext4")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args([
            "-q",
            "-F",
            "-m0",
            "-O^has_journal",
            "-Elazy_itable_init=1,nodiscard",
        ])
        .arg(file)
        .output()
        .context("mkfs.ext4 cannot be run; install e2fsprogs")?;
    if !output.status.success() {
        bail!("mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let (device, _keep_until_mounted) = container::loop_device::attach(file, false).context("loop device")?;
    new_mount("ext4", &[("source", &device)], attributes)
}

fn overlay(lower: &[PathBuf], written: &Path) -> anyhow::Result<OwnedFd> {
    if !takes_layers_one_by_one() {
        return overlay_by_one_string(lower, written);
    }
    let filesystem = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in lower.iter().rev() {
        rustix::mount::fsconfig_set_string(&filesystem, "lowerdir+", layer)?;
    }
    rustix::mount::fsconfig_set_string(&filesystem, "upperdir", written.join("upper"))?;
    rustix::mount::fsconfig_set_string(&filesystem, "workdir", written.join("work"))?;
    // What is written here is not kept after the end, so nobody has to wait for a disk.
    rustix::mount::fsconfig_set_flag(&filesystem, "volatile")?;
    rustix::mount::fsconfig_create(&filesystem)?;
    Ok(rustix::mount::fsmount(
        &filesystem,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NODEV,
    )?)
}

/// Since Linux 6.7. Trying it on an older one (Debian 12 has 6.1) would leave a line in the kernel's log for
/// every container.
fn takes_layers_one_by_one() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(7))
}

fn overlay_by_one_string(lower: &[PathBuf], written: &Path) -> anyhow::Result<OwnedFd> {
    let layers: Vec<_> = lower
        .iter()
        .rev()
        .map(|path| path.display().to_string())
        .collect();
    let (upper, work) = (written.join("upper"), written.join("work"));
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        layers.join(":"),
        upper.display(),
        work.display()
    );
    let options = std::ffi::CString::new(options)?;
    let staging = written.join("staging");
    fs::create_dir(&staging)?;
    rustix::mount::mount(
        "overlay",
        &staging,
        "overlay",
        MountFlags::NODEV,
        options.as_c_str(),
    )?;
    let mount = clone_mount(&staging, false)?;
    rustix::mount::unmount(&staging, UnmountFlags::DETACH)?;
    fs::remove_dir(&staging)?;
    Ok(mount)
}

fn open_bind(bind: &Bind, owner: BorrowedFd<'_>) -> anyhow::Result<OwnedFd> {
    let what = || format!("bind of {}", bind.source.display());
    let is_directory = fs::metadata(&bind.source).with_context(what)?.is_dir();
    if is_directory != (bind.kind == BindKind::Directory) {
        bail!("{} is not a {:?}", bind.source.display(), bind.kind);
    }
    let mount = clone_mount(&bind.source, false).with_context(what)?;
    let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if bind.read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    sys::set_mount_attributes(mount.as_fd(), attributes, bind.idmapped.then_some(owner))
        .with_context(what)?;
    Ok(mount)
}

/// The container's root, worked on from outside. The image is not trusted: every path in it is
/// resolved by the kernel as the container would, so that no link leads out.
struct Inside {
    root: OwnedFd,
    owner: u32,
}

impl Inside {
    fn place_file(&self, file: &InlineFile) -> anyhow::Result<()> {
        let (parent, name) = self.parent_of(&file.path)?;
        match rustix::fs::unlinkat(&parent, &name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(file.mode & 0o7777);
        let opened = rustix::fs::openat(&parent, &name, flags, mode)?;
        io::Write::write_all(&mut fs::File::from(opened.try_clone()?), file.content.as_bytes())?;
        self.give(&opened, file.uid, file.gid)?;
        rustix::fs::fchmod(&opened, mode)?;
        Ok(())
    }

    fn place_bind(&self, bind: &Bind, mount: &OwnedFd) -> anyhow::Result<()> {
        let target = match bind.kind {
            BindKind::Directory => self.directory(&bind.target)?,
            BindKind::File => {
                let (parent, name) = self.parent_of(&bind.target)?;
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(0o644)) {
                    Ok(made) => self.give(&made, 0, 0)?,
                    Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                self.open(&bind.target, OFlags::PATH)?
            }
        };
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(rustix::mount::move_mount(mount, "", &target, "", flags)?)
    }

    fn parent_of(&self, path: &Path) -> anyhow::Result<(OwnedFd, std::ffi::OsString)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            bail!("not a path of a file")
        };
        Ok((self.directory(parent)?, name.to_owned()))
    }

    /// Opens a directory, making what is missing on the way.
    fn directory(&self, path: &Path) -> anyhow::Result<OwnedFd> {
        let mut so_far = PathBuf::from("/");
        let mut here = self.open(&so_far, OFlags::PATH | OFlags::DIRECTORY)?;
        for part in path.components() {
            let std::path::Component::Normal(name) = part else {
                continue;
            };
            so_far.push(name);
            here = match self.open(&so_far, OFlags::PATH | OFlags::DIRECTORY) {
                Err(rustix::io::Errno::NOENT) => {
                    rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(0o755))?;
                    let made = rustix::fs::openat(
                        &here,
                        name,
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                        Mode::empty(),
                    )?;
                    self.give(&made, 0, 0)?;
                    made
                }
                other => other?,
            };
        }
        Ok(here)
    }

    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    fn give(&self, file: &OwnedFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
        let (uid, gid) = (self.owner + uid.min(IDS - 1), self.owner + gid.min(IDS - 1));
        rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
    }
}
