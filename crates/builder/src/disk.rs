//! Build disks: one file system in a sparse file per app, mounted only while it is built.
//!
//! A build that fills its disk fills nobody else's. What a reader would get wrong:
//! * Whoever makes a mount namespace of its own takes copies of the daemon's mounts along (a shim
//!   does while it makes a container's root) and keeps them. So all build disks are mounted below a
//!   mount that is *shared*: unmounting one here takes it away there too, and its file is free.
//! * A file that is still mounted somewhere must never get a second loop device: two file systems
//!   over one file destroy it. `mount` finds and reuses the device that a file already has.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use daemon::{StateDir, files};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use tokio::sync::OwnedMutexGuard;
use types::AppId;

/// Contents survive a killed daemon (the kernel has them) and may be lost in a power cut: it is a
/// cache, and waiting for the machine's disk at every file of a build would cost more than it does.
const MOUNT_OPTIONS: &str =
    "loop,noatime,nosuid,nodev,data=writeback,barrier=0,noinit_itable,errors=remount-ro";
/// Something may still look at a disk for a moment when its job is down.
const BUSY_MAX: u32 = 40;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

pub struct Disks {
    directory: PathBuf,
    size_bytes: u64,
    locks: Mutex<HashMap<AppId, Arc<tokio::sync::Mutex<()>>>>,
}

/// One app's disk, mounted.
pub struct Disk {
    root: PathBuf,
    is_mounted: bool,
    /// Whether what was kept from earlier builds is lost.
    pub was_damaged: bool,
    _alone: OwnedMutexGuard<()>,
}

impl Disks {
    /// Takes away what a daemon left that was killed.
    pub async fn open(state: &StateDir, size_bytes: u64) -> Result<Disks> {
        let directory = state.builds();
        files::create_private_dir(&directory)?;
        let directory = directory.canonicalize()?;
        let path = directory.clone();
        tokio::task::spawn_blocking(move || {
            unmount_below(&path)?;
            remove_leftovers(&path)?;
            mount_bind(&path, &path)?;
            // Private first: shared with whoever shares the surrounding mount it would be their affair too.
            mount_change(&path, MountPropagationFlags::PRIVATE)?;
            mount_change(&path, MountPropagationFlags::SHARED)?;
            io::Result::Ok(())
        })
        .await??;
        Ok(Disks {
            directory,
            size_bytes,
            locks: Mutex::default(),
        })
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Mounts the app's disk, made if there is none or it is beyond repair. Waits while it is in use.
    pub async fn of(&self, app: AppId) -> Result<Disk> {
        let lock = self
            .locks
            .lock()
            .expect("no panic while locked")
            .entry(app)
            .or_default()
            .clone();
        let alone = lock.lock_owned().await;
        let (image, root) = (
            self.directory.join(format!("{app}.img")),
            self.directory.join(app.to_string()),
        );
        let size_bytes = self.size_bytes;
        let mounting = tokio::task::spawn_blocking(move || {
            files::create_private_dir(&root)?;
            let was_damaged = mount_or_make(&image, &root, size_bytes)?;
            anyhow::Ok(Disk {
                root,
                is_mounted: true,
                was_damaged,
                _alone: alone,
            })
        });
        mounting
            .await?
            .with_context(|| format!("cannot mount the build disk of app {app}"))
    }

    pub fn apps(&self) -> io::Result<Vec<AppId>> {
        let names =
            fs::read_dir(&self.directory)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names
            .filter_map(|name| name.strip_suffix(".img")?.parse().ok())
            .collect())
    }

    pub async fn close(&self) {
        let path = self.directory.clone();
        let closed = tokio::task::spawn_blocking(move || unmount_below(&path)).await;
        if !matches!(closed, Ok(Ok(()))) {
            tracing::warn!(path = %self.directory.display(), "build disks cannot be unmounted");
        }
    }
}

impl Disk {
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether a build can have failed for want of space or files.
    pub fn is_full(&self) -> bool {
        let Ok(usage) = rustix::fs::statvfs(&self.root) else {
            return false;
        };
        usage.f_bavail * usage.f_frsize < 1 << 20 || usage.f_favail < 16
    }

    /// Whether a next build would have little to work with.
    pub fn is_crowded(&self) -> bool {
        rustix::fs::statvfs(&self.root).is_ok_and(|usage| usage.f_bavail < usage.f_blocks / 4)
    }

    pub async fn close(mut self) {
        let root = self.root.clone();
        for _ in 0..BUSY_MAX {
            let path = root.clone();
            let unmounted = tokio::task::spawn_blocking(move || unmount(&path, UnmountFlags::empty())).await;
            match unmounted {
                Ok(Err(rustix::io::Errno::BUSY)) => tokio::time::sleep(BUSY_PAUSE).await,
                // Not mounted any more: its app was deleted meanwhile.
                _ => break,
            }
        }
        self.detach();
    }

    /// Gives the place free at once, the disk as soon as nobody uses it.
    fn detach(&mut self) {
        if std::mem::take(&mut self.is_mounted) {
            let _ = unmount(&self.root, UnmountFlags::DETACH);
            let _ = fs::remove_dir(&self.root);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Removes an app's disk with all that is on it.
pub fn remove(state: &StateDir, app: AppId) -> io::Result<()> {
    let directory = state.builds();
    let root = directory.join(app.to_string());
    if root.exists() {
        while unmount(&root, UnmountFlags::DETACH).is_ok() {}
        files::remove_all(&root)?;
    }
    files::remove_all(&directory.join(format!("{app}.img")))
}

/// Unmounts `directory` and everything below it.
pub fn unmount_below(directory: &Path) -> io::Result<()> {
    let Ok(directory) = directory.canonicalize() else {
        return Ok(());
    };
    // Later lines lie on earlier ones.
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    for path in mount_points(&table)
        .into_iter()
        .rev()
        .filter(|path| path.starts_with(&directory))
    {
        unmount(&path, UnmountFlags::DETACH)?;
    }
    Ok(())
}

fn mount_points(table: &str) -> Vec<PathBuf> {
    table
        .lines()
        .filter_map(|line| Some(PathBuf::from(unescaped(line.split(' ').nth(4)?))))
        .collect()
}

/// The kernel writes spaces and the like as three octal digits.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let digits = others
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match digits
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
            .filter(|_| *first == b'\\')
        {
            Some(byte) => {
                bytes.push(byte);
                rest = &others[3..];
            }
            None => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Mount points and half-made files.
fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() || entry.file_name().to_string_lossy().ends_with(".new") {
            files::remove_all(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether an earlier disk had to be given up.
fn mount_or_make(image: &Path, root: &Path, size_bytes: u64) -> Result<bool> {
    if !image.exists() {
        make(image, size_bytes)?;
        mount(image, root)?;
        return Ok(false);
    }
    let is_whole = fs::metadata(image)?.len() == size_bytes && (!has_errors(image)? || repair(image));
    if is_whole && (mount(image, root).is_ok() || (repair(image) && mount(image, root).is_ok())) {
        return Ok(false);
    }
    tracing::warn!(image = %image.display(), "a build disk was damaged or had another size: made anew");
    make(image, size_bytes)?;
    mount(image, root)?;
    Ok(true)
}

fn make(image: &Path, size_bytes: u64) -> Result<()> {
    let new = image.with_extension("img.new");
    let made = (|| {
        files::remove_all(&new)?;
        fs::File::create(&new)?.set_len(size_bytes)?;
        // Room for the many small files of node_modules; nothing reserved for root; a small journal,
        // by which a disk is usable at once after its daemon was killed.
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m0", "-i8192", "-Jsize=8"])
            .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
            .arg(&new))?;
        // A new file in its place: were the old one still in use, it would not be touched.
        fs::rename(&new, image)?;
        anyhow::Ok(())
    })();
    if made.is_err() {
        let _ = files::remove_all(&new);
    }
    made
}

fn mount(image: &Path, root: &Path) -> Result<()> {
    run(Command::new("mount")
        .args(["-t", "ext4", "-o", MOUNT_OPTIONS])
        .arg(image)
        .arg(root))
}

/// ext4 notes in its superblock (state, at 0x3a) when it found itself inconsistent.
fn has_errors(image: &Path) -> Result<bool> {
    const STATE_OFFSET: u64 = 1024 + 0x3a;
    const ERROR: u16 = 2;
    let mut state = [0u8; 2];
    fs::File::open(image)?.read_exact_at(&mut state, STATE_OFFSET)?;
    Ok(u16::from_le_bytes(state) & ERROR != 0)
}

fn repair(image: &Path) -> bool {
    // e2fsck refuses what is in use. Its status is below 4 when everything is in order in the end.
    let status = command(Command::new("e2fsck").args(["-f", "-y"]).arg(image))
        .output()
        .map(|output| output.status);
    status.is_ok_and(|status| status.code().is_some_and(|code| code < 4))
}

fn command(command: &mut Command) -> &mut Command {
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
}

pub fn run(program: &mut Command) -> Result<()> {
    let name = program.get_program().to_string_lossy().into_owned();
    let output = command(program)
        .output()
        .with_context(|| format!("cannot run {name}; is it installed?"))?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const SIZE: u64 = 64 << 20;

    struct World {
        _dir: tempfile::TempDir,
        state: StateDir,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let state = StateDir::new(dir.path());
            World { _dir: dir, state }
        }

        fn mounts(&self) -> usize {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let builds = self.state.builds().canonicalize().unwrap();
            mount_points(&table)
                .iter()
                .filter(|path| path.starts_with(&builds))
                .count()
        }

        /// Loop devices over files of this world.
        fn loops(&self) -> usize {
            let devices = fs::read_dir("/sys/block").unwrap().flatten();
            let files =
                devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
            let builds = self.state.builds().canonicalize().unwrap();
            files
                .filter(|file| Path::new(file.trim_end()).starts_with(&builds))
                .count()
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = unmount_below(&self.state.builds());
        }
    }

    fn app() -> AppId {
        AppId(uuid::Uuid::new_v4())
    }

    #[tokio::test]
    async fn a_disk_keeps_its_content_and_leaves_nothing_mounted() {
        let world = World::new();
        let disks = Disks::open(&world.state, SIZE).await.unwrap();
        let app = app();
        let disk = disks.of(app).await.unwrap();
        fs::write(disk.root().join("kept"), "x").unwrap();
        assert!(!disk.is_full());
        disk.close().await;
        assert_eq!((world.mounts(), world.loops()), (1, 0));
        let disk = disks.of(app).await.unwrap();
        assert_eq!(fs::read_to_string(disk.root().join("kept")).unwrap(), "x");
        assert!(!disk.was_damaged);
        drop(disk);
        disks.close().await;
        assert_eq!((world.mounts(), world.loops()), (0, 0));
        let image = fs::metadata(world.state.builds().join(format!("{app}.img"))).unwrap();
        assert!(image.blocks() * 512 < image.len() / 2, "the file is sparse");
        remove(&world.state, app).unwrap();
        assert_eq!(fs::read_dir(world.state.builds()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_full_disk_is_known_and_hurts_nobody_else() {
        let world = World::new();
        let disks = Disks::open(&world.state, SIZE).await.unwrap();
        let disk = disks.of(app()).await.unwrap();
        let file = fs::File::create(disk.root().join("hog")).unwrap();
        let chunk = vec![1u8; 1 << 20];
        let error = (0..)
            .find_map(|_| io::Write::write_all(&mut &file, &chunk).err())
            .unwrap();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(disk.is_full());
        let other = disks.of(app()).await.unwrap();
        assert!(!other.is_full());
    }

    #[tokio::test]
    async fn what_a_killed_daemon_left_is_taken_away_at_the_start() {
        let world = World::new();
        let disks = Disks::open(&world.state, SIZE).await.unwrap();
        let (disk, app) = (disks.of(app()).await.unwrap(), app());
        fs::write(disk.root().join("kept"), "x").unwrap();
        fs::write(world.state.builds().join(format!("{app}.img.new")), "half").unwrap();
        // Killed: nothing of it is told to end.
        let root = disk.root().to_owned();
        std::mem::forget(disk);
        std::mem::forget(disks);
        let disks = Disks::open(&world.state, SIZE).await.unwrap();
        assert!(!root.exists());
        assert_eq!((world.mounts(), world.loops()), (1, 0));
        assert_eq!(disks.apps().unwrap().len(), 1);
        let disk = disks.of(disks.apps().unwrap()[0]).await.unwrap();
        assert_eq!(fs::read_to_string(disk.root().join("kept")).unwrap(), "x");
    }

    #[tokio::test]
    async fn a_damaged_disk_is_repaired_or_made_anew() {
        let world = World::new();
        let disks = Disks::open(&world.state, SIZE).await.unwrap();
        let app = app();
        disks.of(app).await.unwrap().close().await;
        let image = world.state.builds().join(format!("{app}.img"));
        for (zeros, is_beyond_repair) in [(4096, false), (SIZE as usize, true)] {
            fs::File::options()
                .write(true)
                .open(&image)
                .unwrap()
                .write_all_at(&vec![0u8; zeros], 0)
                .unwrap();
            let disk = disks.of(app).await.unwrap();
            assert_eq!(disk.was_damaged, is_beyond_repair);
            fs::write(disk.root().join("works"), "x").unwrap();
            disk.close().await;
        }
    }

    #[test]
    fn unmounting_reaches_containers_that_were_started_meanwhile() {
        let world = World::new();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let disks = runtime.block_on(Disks::open(&world.state, SIZE)).unwrap();
        let disk = runtime.block_on(disks.of(app())).unwrap();
        // What a shim does: a mount namespace of its own that follows this one.
        let mut other = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "slave",
                "sh",
                "-c",
                "echo ready; read line",
            ])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0u8; 6];
        io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut ready).unwrap();
        runtime.block_on(disk.close());
        let loops = world.loops();
        drop(other.stdin.take());
        other.wait().unwrap();
        assert_eq!(loops, 0);
    }

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        let table =
            "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 7:0 / /a\\040b\\134c rw shared:1 - ext4 /dev/b rw\n";
        assert_eq!(
            mount_points(table),
            [PathBuf::from("/"), PathBuf::from("/a b\\c")]
        );
    }
}
