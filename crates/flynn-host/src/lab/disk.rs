//! A host's disk: one of its own that can be full without the machine's being so, and one that is slow.
//!
//! Without a disk of its own a host's files are on the machine's file system. What is slow is what the host's platform
//! writes through to the device, as every acknowledged write of the cluster's state is: the kernel lets its cgroup do
//! so many writes a second.

use std::{
    fs,
    os::{linux::fs::MetadataExt, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use container::cgroup::Cgroup;

use super::{layout::Lab, network::run};

/// Makes a disk of this size for a host that has not been started yet.
pub fn make(lab: &Lab, host: u8, size_bytes: u64) -> Result<()> {
    let image = image(lab, host);
    fs::create_dir_all(lab.host_directory(host).join("state"))?;
    fs::File::create(&image)?.set_len(size_bytes)?;
    run(&format!("mkfs.ext4 -q -F -m0 {}", image.display()), None)
        .context("cannot make the host's disk\nhint: apt-get install e2fsprogs")?;
    mount(lab, host)?;
    // Which e2fsck would want, and a host would take for something of its own.
    let _ = fs::remove_dir(lab.host_directory(host).join("state/lost+found"));
    Ok(())
}

/// Mounts a host's disk, if it has one and it is not mounted.
pub fn mount(lab: &Lab, host: u8) -> Result<()> {
    let (image, state) = (image(lab, host), lab.host_directory(host).join("state"));
    if !image.exists() || is_mounted(&state)? {
        return Ok(());
    }
    // The loop device goes by itself with the last mount.
    run(
        &format!("mount -o loop {} {}", image.display(), state.display()),
        None,
    )
    .map(drop)
    .context("cannot mount the host's disk")
}

/// Unmounts what is mounted below a lab's directory.
pub fn unmount_all(directory: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(directory)) {
        run(&format!("umount {point}"), None).context("cannot unmount a host's disk")?;
    }
    Ok(())
}

/// Lets a host's platform write so often a second, or as often as it likes.
pub fn set_writes_per_second(lab: &Lab, host: u8, writes: Option<u32>) -> Result<()> {
    let device = device(&lab.host_directory(host).join("state"))?;
    // Limits of version 1 do not hold for what is below, and the platform's programs are in `init`.
    for path in [lab.cgroup(host), format!("{}/init", lab.cgroup(host))] {
        let cgroup = Cgroup::locate(&path)?;
        let Some(directory) = cgroup.directory("blkio").filter(|directory| directory.exists()) else {
            continue;
        };
        let (file, text) = match (cgroup.is_unified(), writes) {
            (true, None) => ("io.max", format!("{device} wiops=max")),
            (true, Some(writes)) => ("io.max", format!("{device} wiops={writes}")),
            (false, writes) => (
                "blkio.throttle.write_iops_device",
                format!("{device} {}", writes.unwrap_or(0)),
            ),
        };
        fs::write(directory.join(file), text).with_context(|| {
            format!(
                "the kernel does not slow device {device} down\nhint: this needs CONFIG_BLK_DEV_THROTTLING"
            )
        })?;
    }
    Ok(())
}

fn image(lab: &Lab, host: u8) -> PathBuf {
    lab.host_directory(host).join("disk.img")
}

fn is_mounted(path: &Path) -> Result<bool> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

/// `MAJOR:MINOR` of the whole disk that has this directory; the kernel takes no partition's.
fn device(path: &Path) -> Result<String> {
    let number = fs::metadata(path)?.st_dev();
    let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let described = Path::new("/sys/dev/block").join(&number);
    ensure!(
        described.exists(),
        "{} is on no block device of its own, which could be slowed down\nhint: --dir says where the lab is",
        path.display()
    );
    if !described.join("partition").exists() {
        return Ok(number);
    }
    let disk = fs::canonicalize(&described)?.join("../dev");
    Ok(fs::read_to_string(disk)?.trim().to_owned())
}
