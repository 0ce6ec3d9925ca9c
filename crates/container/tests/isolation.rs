//! What a container cannot do, see or use up.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use common::*;
use container::capability::{self, Capability};
use container::{Bind, BindKind, InlineFile, Outcome, SeccompProfile};

#[tokio::test]
async fn the_app_has_no_rights_a_filter_and_no_way_to_more() {
    let world = World::new();
    let mut spec = world.spec("");
    spec.process.args = vec!["cat".into(), "/proc/self/status".into()];
    let (_, status) = world.run(&spec).await;
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_else(|| panic!("{name} in {status}"))
            .trim()
            .to_owned()
    };
    assert_eq!(field("CapEff"), "0000000000000000");
    assert_eq!(field("CapPrm"), "0000000000000000");
    assert_eq!(field("CapInh"), "0000000000000000");
    assert_eq!(field("CapAmb"), "0000000000000000");
    assert_eq!(
        field("CapBnd"),
        format!("{:016x}", capability::mask(capability::DEFAULT))
    );
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert_eq!(field("Uid"), "1000\t1000\t1000\t1000");
    assert_eq!(field("Groups"), "");
    assert_eq!(field("SigBlk"), "0000000000000000");
    assert_eq!(field("SigIgn"), "0000000000000000");
}

#[tokio::test]
async fn root_inside_is_nobody_outside() {
    let world = World::new();
    let mut spec = world.spec("id -u; cat /proc/self/uid_map; echo up; sleep 1000");
    spec.process.uid = 0;
    spec.process.gid = 0;
    let job = world.start(&spec).await;
    job.wait_for_log("up").await;
    assert!(job.log().starts_with("0\n"), "{}", job.log());
    for pid in job.cgroup().processes() {
        let owner = fs::metadata(format!("/proc/{pid}/task")).unwrap().uid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uid = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .unwrap()
            .trim();
        assert!(
            uid.starts_with(&spec.host_id_base.to_string()),
            "{uid}; owner {owner}"
        );
    }
    job.kill_and_end().await;
}

#[tokio::test]
async fn escapes_are_refused_to_root_inside() {
    let world = World::new();
    let mut spec = world.spec(
        "try() { if \"$@\" >/dev/null 2>&1; then echo \"ALLOWED: $*\"; fi; }
         try mount -t tmpfs none /tmp
         try mount -o bind /etc /tmp
         try umount /proc
         try mount -o remount,rw /sys
         try unshare -m true
         try unshare -U true
         try unshare -n true
         try mknod /tmp/disk b 254 0
         try hostname other
         try ping -c1 -W5 127.0.0.1
         try sh -c 'echo 1 > /proc/sys/kernel/core_pattern'
         try sh -c 'echo x > /proc/sysrq-trigger'
         try sh -c 'echo 1 > /sys/kernel/uevent_helper'
         try sh -c 'echo $$ > /sys/fs/cgroup/memory/cgroup.procs'
         try sh -c 'echo 999999999 > /sys/fs/cgroup/memory/memory.limit_in_bytes'
         try nsenter -t 1 -m true
         try ls /proc/1/root/
         try cat /proc/1/environ
         try readlink /proc/1/exe
         try chroot /proc/1/root true
         try insmod /nothing
         try dmesg
         try sh -c 'date -s 2020-01-01; [ $(date +%Y) = 2020 ]'
         try swapon /tmp/x
         try nice -n -5 true
         try cat /proc/kcore
         echo done",
    );
    spec.process.uid = 0;
    spec.process.gid = 0;
    let (record, output) = world.run(&spec).await;
    assert_eq!(record.outcome, Outcome::Exited { code: 0 });
    assert_eq!(output, "done\n");
}

#[tokio::test]
async fn docker_s_paths_are_masked_or_read_only() {
    let world = World::new();
    let mut spec = world.spec(
        "wc -c < /proc/keys; wc -c < /proc/timer_list; ls /sys/firmware | wc -l; ls /proc/acpi 2>/dev/null | wc -l
         grep -E ' (/proc/sys|/proc/bus|/proc/irq|/sys) ' /proc/mounts | cut -d' ' -f2,4 | cut -d, -f1 | sort",
    );
    spec.process.uid = 0;
    let (_, output) = world.run(&spec).await;
    assert_eq!(
        output,
        "0\n0\n0\n0\n/proc/bus ro\n/proc/irq ro\n/proc/sys ro\n/sys ro\n"
    );
}

#[tokio::test]
async fn devices_are_few_and_shared_memory_is_there() {
    let world = World::new();
    let output = world
        .output("ls /dev | sort | tr '\\n' ' '; echo; echo x > /dev/shm/x && cat /dev/shm/x; echo y > /dev/null; head -c3 /dev/zero | wc -c")
        .await;
    assert_eq!(
        output,
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero \nx\n3\n"
    );
}

#[tokio::test]
async fn the_network_is_its_own_with_loopback_up() {
    let world = World::new();
    let output = world.output("ls /sys/class/net; ip addr show lo | grep -o 127.0.0.1/8; cat /proc/sys/net/ipv4/ping_group_range; echo hi | nc -l -p 80 & sleep 0.2; nc 127.0.0.1 80").await;
    assert_eq!(output, "lo\n127.0.0.1/8\n0\t65535\nhi\n");
}

#[tokio::test]
async fn a_memory_hog_is_killed_and_reported_as_such() {
    let world = World::new();
    let (record, _) = world.run(&world.spec("exec tail /dev/zero")).await;
    assert_eq!(
        record.outcome,
        Outcome::Signaled {
            signal: libc::SIGKILL
        }
    );
    assert!(record.oom_killed);
    world.check_nothing_left().await;
}

#[tokio::test]
async fn a_fork_bomb_stays_within_its_number() {
    let world = World::new();
    let mut spec = world.spec("i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done; echo all");
    spec.limits.processes_max = Some(20);
    let job = world.start(&spec).await;
    until("the limit is met", || {
        job.log().contains("can't fork") || job.log().contains("all")
    })
    .await;
    assert!(job.log().contains("can't fork"), "{}", job.log());
    job.end().await;
}

#[tokio::test]
async fn limits_are_what_was_asked_for_or_what_the_host_permits() {
    let world = World::new();
    let output = world
        .output("ulimit -n; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true")
        .await;
    let mut lines = output.lines();
    let files: u64 = lines.next().unwrap().parse().unwrap();
    assert!((1024..=1 << 20).contains(&files));
    assert_eq!(lines.next(), Some("67108864"));
}

#[tokio::test]
async fn a_small_temporary_disk_is_full_when_it_is_full() {
    let world = World::new();
    let mut spec = world
        .spec("head -c 8000000 /dev/zero > /tmp/x || echo full; rm /tmp/x; echo fine > /tmp/y; cat /tmp/y");
    spec.temp_disk_bytes = 4 << 20;
    let (_, output) = world.run(&spec).await;
    assert!(
        output.contains("full\n") && output.ends_with("fine\n"),
        "{output}"
    );
}

#[tokio::test]
async fn a_large_temporary_disk_is_a_file_that_goes_away() {
    let world = World::new();
    let mut spec = world.spec("df -m / | tail -1; head -c 100000000 /dev/zero > /tmp/x && wc -c < /tmp/x");
    spec.temp_disk_bytes = 300 << 20;
    let (record, output) = world.run(&spec).await;
    assert_eq!(record.outcome, Outcome::Exited { code: 0 }, "{output}");
    assert!(output.ends_with("100000000\n"), "{output}");
    assert!(!world.directory.path().join(&spec.id).join("disk.ext4").exists());
    world.check_nothing_left().await;
}

#[tokio::test]
async fn layers_lie_on_each_other_and_are_not_changed() {
    let world = World::new();
    let upper = world.directory.path().join("upper");
    fs::create_dir_all(upper.join("etc")).unwrap();
    fs::write(upper.join("etc/motd"), "from the second layer\n").unwrap();
    let mut images = Vec::new();
    for (name, directory) in [("one", world.root()), ("two", upper)] {
        let image = world.directory.path().join(format!("{name}.erofs"));
        let options = container::layers::PackOptions {
            compressed: name == "one",
            owner: None,
        };
        container::layers::pack(&directory, &image, options).unwrap();
        images.push(image);
    }
    let mut spec =
        world.spec("cat /etc/motd; stat -c %u /etc/motd /home/app; echo mine > /home/app/x; cat /home/app/x");
    spec.layers = images;
    let (record, output) = world.run(&spec).await;
    assert_eq!(
        (record.outcome, output.as_str()),
        (
            Outcome::Exited { code: 0 },
            "from the second layer\n0\n1000\nmine\n"
        )
    );
    world.check_nothing_left().await;
}

#[tokio::test]
async fn packing_twice_gives_the_same_bytes() {
    let world = World::new();
    let pack = |name: &str| {
        let options = container::layers::PackOptions {
            compressed: false,
            owner: Some((0, 0)),
        };
        container::layers::pack(&world.root(), &world.directory.path().join(name), options).unwrap()
    };
    let (first, second) = (pack("a"), pack("b"));
    assert_eq!(first, second);
    assert_eq!(
        first.size_bytes,
        fs::metadata(world.directory.path().join("a")).unwrap().len()
    );
}

#[tokio::test]
async fn a_running_container_keeps_no_mount_of_the_host_busy() {
    let world = World::new();
    let elsewhere = world.directory.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    rustix::mount::mount(
        "none",
        &elsewhere,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    let job = world.start(&world.spec("echo up; sleep 1000")).await;
    job.wait_for_log("up").await;
    rustix::mount::unmount(&elsewhere, rustix::mount::UnmountFlags::empty()).unwrap();
    for pid in job.cgroup().processes() {
        for pid in [pid, parent_of(pid)] {
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            assert!(!mounts.contains("elsewhere"), "process {pid} holds it");
        }
    }
    job.kill_and_end().await;
}

#[tokio::test]
async fn layers_can_be_mounted_once_for_all() {
    let world = World::new();
    let image = world.directory.path().join("one.erofs");
    container::layers::pack(&world.root(), &image, container::layers::PackOptions::default()).unwrap();
    let mounted = world.directory.path().join("mounted");
    fs::create_dir(&mounted).unwrap();
    container::layers::mount(&image, &mounted).unwrap();
    let mut spec = world.spec("stat -c %u /bin/busybox; echo fine");
    spec.layers = vec![mounted.clone()];
    let (_, output) = world.run(&spec).await;
    rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(output, "0\nfine\n");
    world.check_nothing_left().await;
}

#[tokio::test]
async fn a_read_only_root_takes_nothing() {
    let world = World::new();
    let mut spec = world.spec("touch /tmp/x 2>/dev/null || echo refused; touch /dev/shm/x && echo shm");
    spec.readonly_root = true;
    assert_eq!(world.run(&spec).await.1, "refused\nshm\n");
}

#[tokio::test]
async fn binds_keep_owners_when_mapped_and_refuse_writes_when_read_only() {
    let world = World::new();
    let volume = world.directory.path().join("volume");
    fs::create_dir(&volume).unwrap();
    std::os::unix::fs::chown(&volume, Some(1000), Some(1000)).unwrap();
    let secret = world.directory.path().join("file");
    fs::write(&secret, "from the host\n").unwrap();
    let mut spec = world.spec("echo data > /data/deep/x && stat -c %u /data/deep/x; cat /opt/file; echo no 2>/dev/null > /opt/file || echo refused");
    let bind = |source: &PathBuf, target: &str, kind, read_only| Bind {
        source: source.clone(),
        target: target.into(),
        kind,
        read_only,
        idmapped: true,
    };
    spec.binds = vec![
        bind(&volume, "/data/deep", BindKind::Directory, false),
        bind(&secret, "/opt/file", BindKind::File, true),
    ];
    let (_, output) = world.run(&spec).await;
    assert!(
        output.starts_with("1000\nfrom the host\n") && output.ends_with("refused\n"),
        "{output}"
    );
    assert_eq!(fs::read_to_string(volume.join("x")).unwrap(), "data\n");
    assert_eq!(fs::metadata(volume.join("x")).unwrap().uid(), 1000);
    world.check_nothing_left().await;
}

#[tokio::test]
async fn files_are_placed_and_a_link_in_the_image_leads_nowhere_else() {
    let world = World::new();
    let outside = world.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, world.root().join("escape")).unwrap();
    std::os::unix::fs::symlink("/run/elsewhere", world.root().join("etc/resolv.conf")).unwrap();
    let mut spec =
        world.spec("cat /etc/resolv.conf; stat -c '%u %a' /etc/resolv.conf /etc; cat /new/dir/file");
    let file = |path: &str, content: &str| InlineFile {
        path: path.into(),
        content: content.into(),
        mode: 0o644,
        uid: 0,
        gid: 0,
    };
    spec.files = vec![
        file("/etc/resolv.conf", "nameserver 100.100.0.1\n"),
        file("/new/dir/file", "new\n"),
    ];
    assert_eq!(
        world.run(&spec).await.1,
        "nameserver 100.100.0.1\n0 644\n0 755\nnew\n"
    );

    let mut spec = world.spec("true");
    spec.files = vec![file("/escape/file", "x")];
    world.start_failure(&spec).await;
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn extra_capabilities_are_for_those_who_asked() {
    let world = World::new();
    let mut spec = world.spec("grep CapEff /proc/self/status; hostname other && hostname");
    spec.process.uid = 0;
    spec.extra_capabilities = vec![Capability::SYS_ADMIN];
    let (_, output) = world.run(&spec).await;
    let mask = capability::mask(capability::DEFAULT.into_iter().chain([Capability::SYS_ADMIN]));
    // The filter still refuses what the capability would allow.
    assert_eq!(
        output.lines().next(),
        Some(format!("CapEff:\t{mask:016x}").as_str())
    );
    assert!(!output.contains("other\n"), "{output}");
}

#[tokio::test]
async fn the_builder_profile_still_refuses_mounts() {
    let world = World::new();
    let mut spec = world.spec("mount -t tmpfs x /tmp || echo refused; unshare -U true || echo refused too");
    spec.process.uid = 0;
    spec.seccomp = SeccompProfile::Builder;
    let (_, output) = world.run(&spec).await;
    assert!(
        output.contains("refused\n") && output.contains("refused too\n"),
        "{output}"
    );
}
