use std::time::Duration;

use futures::FutureExt;
use types::{JobId, Timestamp, Uuid};

use super::*;

fn id(n: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(n))
}

fn info(n: u128) -> VolumeInfo {
    VolumeInfo {
        id: id(n),
        kind: VolumeType::Data,
        meta: BTreeMap::new(),
        created_at: Timestamp::EPOCH,
    }
}

struct Disk {
    dir: tempfile::TempDir,
    volumes: Volumes,
}

impl Disk {
    fn new() -> Disk {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(dir.path().join("volumes"));
        Disk { dir, volumes }
    }

    fn data(&self, n: u128) -> PathBuf {
        self.volumes.path(id(n)).join(DATA)
    }

    fn ids(&self) -> Vec<u128> {
        let listed = self.volumes.list().unwrap();
        listed.iter().map(|info| info.id.0.as_u128()).collect()
    }

    /// The mounts of a job that runs as whoever runs this test.
    fn binds(&self, job: &HostJob) -> Result<Vec<Bind>, String> {
        let own = fs::metadata(self.dir.path()).unwrap();
        self.volumes.binds(job, own.uid(), own.gid())
    }

    /// Everything in the directory of volumes, by name.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("volumes")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// A job with one volume at `/data`.
fn job(volume: u128, is_new: bool) -> HostJob {
    let mut job = HostJob {
        id: "host0-00000000-0000-0000-0000-000000000001".into(),
        ..HostJob::default()
    };
    job.metadata.insert(HostJob::APP_NAME.into(), "shop".into());
    job.config.volumes = vec![VolumeBinding {
        target: "/data".into(),
        volume: id(volume),
        writeable: true,
        delete_on_stop: false,
        is_new,
    }];
    job
}

#[test]
fn a_volume_that_is_made_again_keeps_its_files() {
    let disk = Disk::new();
    assert_eq!(disk.ids(), [] as [u128; 0], "before there is a directory");
    disk.volumes.make(&info(2)).unwrap();
    disk.volumes.make(&info(1)).unwrap();
    fs::write(disk.data(1).join("file"), "kept").unwrap();
    disk.volumes.make(&info(1)).unwrap();
    assert_eq!(disk.ids(), [1, 2]);
    assert_eq!(fs::read_to_string(disk.data(1).join("file")).unwrap(), "kept");
}

#[test]
fn a_volume_is_there_when_it_is_whole() {
    let disk = Disk::new();
    // What a power cut leaves of one that was being made.
    fs::create_dir_all(disk.data(1)).unwrap();
    assert_eq!(disk.ids(), [] as [u128; 0]);
    assert!(disk.binds(&job(1, false)).is_err());
    disk.volumes.make(&info(1)).unwrap();
    assert_eq!(disk.ids(), [1]);
}

#[test]
fn a_removed_volume_is_gone_at_once_and_its_files_also_after_a_break() {
    let disk = Disk::new();
    disk.volumes.make(&info(1)).unwrap();
    disk.volumes.make(&info(2)).unwrap();
    disk.volumes.remove(id(1)).unwrap();
    disk.volumes.remove(id(1)).unwrap();
    disk.volumes.remove(id(9)).unwrap();
    assert_eq!(disk.names(), [id(2).to_string()]);
    // The daemon was killed between the rename and the last file.
    let (path, gone) = (
        disk.volumes.path(id(2)),
        disk.volumes.path(id(2)).with_extension(GONE),
    );
    fs::rename(path, gone).unwrap();
    assert_eq!(disk.ids(), [] as [u128; 0]);
    disk.volumes.sweep().unwrap();
    assert_eq!(disk.names(), [] as [String; 0]);
}

#[test]
fn listeners_hear_of_what_is_made_and_removed_once() {
    let disk = Disk::new();
    let mut events = disk.volumes.events();
    for _ in 0..2 {
        disk.volumes.make(&info(1)).unwrap();
    }
    for _ in 0..2 {
        disk.volumes.remove(id(1)).unwrap();
    }
    let mut heard = vec![];
    while let Ok(event) = events.try_recv() {
        heard.push(format!("{} {}", event.kind, event.volume.id.0.as_u128()));
    }
    assert_eq!(heard, ["create 1", "destroy 1"]);
}

#[test]
fn a_job_gets_a_new_volume_and_never_an_empty_one_for_one_that_is_lost() {
    let disk = Disk::new();
    let lost = disk.binds(&job(1, false)).unwrap_err();
    assert!(lost.contains("is not on this host"), "{lost}");
    assert_eq!(disk.ids(), [] as [u128; 0]);
    let binds = disk.binds(&job(1, true)).unwrap();
    assert_eq!(binds[0].source, disk.data(1));
    assert_eq!(binds[0].target, Path::new("/data"));
    let made = disk.volumes.get(id(1)).unwrap().unwrap();
    assert_eq!(made.meta[HostJob::APP_NAME], "shop");
    assert_eq!(made.meta[HostVolume::PATH], "/data");
    // From now on it is there for whoever comes next.
    assert!(disk.binds(&job(1, false)).is_ok());
}

#[test]
fn what_the_controller_asks_for_is_done_once_it_is_what_was_asked_last() {
    let disk = Disk::new();
    let wanted = |state| HostVolume {
        id: id(1),
        state,
        meta: BTreeMap::new(),
        created_at: Timestamp::EPOCH,
    };
    disk.volumes.hear(wanted(VolumeState::Pending));
    let first = disk.volumes.waiting();
    disk.volumes.hear(wanted(VolumeState::Destroyed));
    disk.volumes.done(&first[0]);
    assert_eq!(disk.volumes.waiting(), [wanted(VolumeState::Destroyed)]);
    disk.volumes.done(&wanted(VolumeState::Destroyed));
    assert_eq!(disk.volumes.waiting(), []);
}

/// Jobs with their volumes, in the order in which they came to the host.
fn table(jobs: &[u128]) -> (Table, Vec<Arc<Entry>>) {
    let table = Table::new("host0".parse().unwrap());
    let entries = jobs.iter().zip(1..).map(|(volume, n)| {
        let job = Arc::new(job(*volume, false));
        let at = Timestamp::from_micros(n);
        table
            .add(JobId(Uuid::from_u128(n as u128)), job, at)
            .expect("it is new")
    });
    let entries = entries.collect();
    (table, entries)
}

#[tokio::test]
async fn a_job_waits_for_the_job_that_had_its_volume_before() {
    let (table, jobs) = table(&[1, 1]);
    let mut wait = Box::pin(are_free(&table, &jobs[1]));
    assert!((&mut wait).now_or_never().is_none(), "the first still runs");
    jobs[0].change(|view| view.phase = Phase::Stopping);
    assert!((&mut wait).now_or_never().is_none(), "it has not ended");
    jobs[0].change(|view| view.phase = Phase::Down);
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .expect("it has ended");
}

#[test]
fn nobody_waits_for_later_jobs_or_other_volumes() {
    let (table, jobs) = table(&[1, 2, 1]);
    assert!(are_free(&table, &jobs[0]).now_or_never().is_some(), "the first");
    assert!(
        are_free(&table, &jobs[1]).now_or_never().is_some(),
        "another volume"
    );
    assert!(are_free(&table, &jobs[2]).now_or_never().is_none());
    table.settle(&jobs[0]);
    assert!(are_free(&table, &jobs[2]).now_or_never().is_some(), "it is gone");
}
