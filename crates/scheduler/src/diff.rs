//! What is missing and what is too many, per (app, release, type).
//!
//! An omni type has one job on each host that is up, not being drained, and has its tags; any other has as
//! many jobs as its count. A job on a host that no longer has its type's tags, or is being drained, goes when
//! another is up in its place; an omni one needs no other. So does a job that is moved (`rebalance`).

use std::collections::{BTreeMap, BTreeSet};

use types::{AppId, Host, Job, JobId, JobState, ReleaseId, StopReason, Timestamp};
use uuid::Uuid;

use crate::{
    META_HOST, META_REPLACES, Wake,
    index::{Group, GroupKey, Index, Standing},
    memory::key_of,
    place::Need,
    rebalance, restart, surplus, volumes,
    wanted::{Want, Wanted},
};

/// Names the ids that plans make, so that they never meet those of anything else.
const JOB_IDS: Uuid = Uuid::from_u128(0x5c0f_1e7a_9d3b_4c26_8a41_7f0e_66d2_b913);

#[derive(Default)]
pub(crate) struct Changes<'w, 'a> {
    pub stops: Vec<(&'a Job, StopReason)>,
    pub batches: Vec<Batch<'w, 'a>>,
    /// Formations whose jobs are not yet what is wanted.
    pub unsettled: BTreeSet<(AppId, ReleaseId)>,
}

/// Jobs that need the same and are to get hosts, one after the other.
pub(crate) struct Batch<'w, 'a> {
    /// None for a one-off job.
    pub key: Option<GroupKey<'a>>,
    pub need: Need<'w>,
    pub pending: Vec<&'a Job>,
    pub new: Vec<Job>,
}

impl<'a> Changes<'_, 'a> {
    /// Types whose jobs are stopped or started.
    pub fn keys(&self) -> BTreeSet<GroupKey<'a>> {
        let stopped = self.stops.iter().filter_map(|(job, _)| {
            let (app, release) = key_of(job)?;
            Some((app, release, job.process_type.as_str()))
        });
        let placed = self.batches.iter().filter_map(|batch| batch.key);
        stopped.chain(placed).collect()
    }
}

pub(crate) fn compare<'w, 'a>(index: &Index<'a>, wanted: &'w Wanted<'a>, wake: &mut Wake) -> Changes<'w, 'a> {
    let mut changes = Changes::default();
    let nothing = Group::default();
    let mut keys = wanted.keys(&index.attention);
    keys.extend(index.groups.keys().copied());
    for key in keys {
        let group = index.groups.get(&key).unwrap_or(&nothing);
        if let Some(want) = wanted.want(key) {
            follow(index, key, group, &want, wake, &mut changes);
        } else {
            let unwanted = group.active.iter().map(|job| (*job, StopReason::Unwanted));
            changes.stops.extend(unwanted);
            if !group.stopping.is_empty() || group.active.iter().any(|job| runs(job)) {
                changes.unsettled.insert((key.0, key.1));
            }
        }
    }
    let is_unwanted = |job: &&&Job| job.is_active() && !index.cluster.apps.contains_key(&job.app);
    let strays = index.strays.iter().filter(|job| job.is_active());
    let unwanted = strays.chain(index.one_offs.iter().filter(is_unwanted));
    changes
        .stops
        .extend(unwanted.map(|job| (*job, StopReason::Unwanted)));
    let one_offs = index
        .one_offs
        .iter()
        .filter(|job| job.state == JobState::Pending && !is_unwanted(job));
    changes.batches.extend(one_offs.map(|job| Batch {
        key: None,
        need: Need::of_job(&index.cluster.releases, job),
        pending: vec![job],
        new: Vec::new(),
    }));
    changes
}

fn follow<'w, 'a>(
    index: &Index<'a>,
    key: GroupKey<'a>,
    group: &Group<'a>,
    want: &Want<'w, 'a>,
    wake: &mut Wake,
    changes: &mut Changes<'w, 'a>,
) {
    let (sick, active): (Vec<&Job>, Vec<&Job>) = group
        .active
        .iter()
        .partition(|job| surplus::is_sick(index, want.process, job, wake));
    let (unwanted, holes) = if want.process.omni {
        compare_omni(index, &active, want)
    } else {
        compare_counted(index, active.clone(), want)
    };
    let new = fill(index, key, group, want, holes);

    let going: BTreeSet<JobId> = unwanted.iter().map(|job| job.id).collect();
    let is_settled = group.stopping.is_empty()
        // One that is moved and may not go yet.
        && (want.process.omni || active.len() - going.len() <= want.count as usize)
        && sick.is_empty()
        && new.is_empty()
        && !unwanted.iter().any(|job| runs(job))
        && active
            .iter()
            .all(|job| job.state == JobState::Up || going.contains(&job.id));
    if !is_settled {
        changes.unsettled.insert((key.0, key.1));
    }
    let is_pending = |job: &&Job| job.state == JobState::Pending && !going.contains(&job.id);
    let pending: Vec<&Job> = active.into_iter().filter(is_pending).collect();
    changes
        .stops
        .extend(sick.into_iter().map(|job| (job, StopReason::Unhealthy)));
    changes
        .stops
        .extend(unwanted.into_iter().map(|job| (job, StopReason::Unwanted)));
    if !pending.is_empty() || !new.is_empty() {
        let need = Need::of_type(want.process, want.tags);
        changes.batches.push(Batch {
            key: Some(key),
            need,
            pending,
            new,
        });
    }
}

/// Whether stopping a job takes time: what is only pending is gone at once.
fn runs(job: &Job) -> bool {
    job.state != JobState::Pending
}

/// A place in a formation that no job takes; on a certain host for omni types.
type Hole<'a> = Option<&'a Host>;

pub(crate) fn compare_counted<'a>(
    index: &Index<'a>,
    active: Vec<&'a Job>,
    want: &Want,
) -> (Vec<&'a Job>, Vec<Hole<'a>>) {
    let count = want.count as usize;
    let fits = |job: &&Job| {
        job.host
            .as_ref()
            .and_then(|host| index.view(host))
            .is_none_or(|view| view.has(want.tags) && !view.host.is_draining)
            // Elsewhere it would be without its data.
            || volumes::is_bound(want.process, job)
    };
    let (mut fitting, mut misplaced): (Vec<&Job>, Vec<&Job>) = active.into_iter().partition(fits);

    let holes = count.saturating_sub(fitting.len());
    let mut unwanted = Vec::new();
    let mut moves = rebalance::moves(&fitting, count);
    if fitting.len() > count + moves.len() {
        surplus::sort(index, &mut fitting);
        while fitting.len() > count + moves.len() {
            unwanted.push(fitting.remove(0));
            moves = rebalance::moves(&fitting, count);
        }
    }
    let moved: BTreeSet<JobId> = moves.iter().map(|(moved, _)| moved.id).collect();
    let (mut moved, fitting): (Vec<&Job>, Vec<&Job>) =
        fitting.into_iter().partition(|job| moved.contains(&job.id));
    misplaced.append(&mut moved);
    if !misplaced.is_empty() {
        let serving = fitting.iter().filter(|job| surplus::serves(index, job)).count();
        let misplaced_kept = count.saturating_sub(serving).min(misplaced.len());
        surplus::sort(index, &mut misplaced);
        misplaced.truncate(misplaced.len() - misplaced_kept);
    }
    unwanted.append(&mut misplaced);
    (unwanted, vec![None; holes])
}

fn compare_omni<'a>(index: &Index<'a>, active: &[&'a Job], want: &Want) -> (Vec<&'a Job>, Vec<Hole<'a>>) {
    let mut unwanted = Vec::new();
    let mut by_host: BTreeMap<u32, Vec<&Job>> = BTreeMap::new();
    for job in active {
        let position = index.host_position(job).filter(|at| {
            let view = &index.hosts[*at as usize];
            // What runs on a silent host is not stopped for that; what only waits for one is.
            view.has(want.tags)
                && !view.host.is_draining
                && (job.host.is_some() || view.standing != Standing::Gone)
        });
        match position {
            Some(at) => by_host.entry(at).or_default().push(job),
            None => unwanted.push(*job),
        }
    }
    for jobs in by_host.values_mut().filter(|jobs| jobs.len() > 1) {
        surplus::sort(index, jobs);
        jobs.pop();
        unwanted.append(jobs);
    }
    let holes = (0..)
        .zip(&index.hosts)
        .filter(|(at, view)| view.is_open() && view.has(want.tags) && !by_host.contains_key(at))
        .map(|(_, view)| Some(view.host))
        .collect();
    (unwanted, holes)
}

/// New jobs for `holes`, each after a crashed one where one has left its place open.
fn fill<'a>(
    index: &Index<'a>,
    key: GroupKey<'a>,
    group: &Group<'a>,
    want: &Want,
    holes: Vec<Hole<'a>>,
) -> Vec<Job> {
    if holes.is_empty() {
        return Vec::new();
    }
    let mut open = restart::open_places(&group.crashed, &group.followed, want.since);
    let holes = (0u32..).zip(holes);
    holes
        .map(|(ordinal, host)| {
            let ended = match host {
                Some(host) => open.iter().position(|job| job.host.as_ref() == Some(&host.id)),
                None => (!open.is_empty()).then_some(0),
            };
            new_job(index, key, ordinal, ended.map(|at| open.remove(at)), host)
        })
        .collect()
}

pub(crate) fn new_job(
    index: &Index,
    (app, release, process_type): GroupKey,
    ordinal: u32,
    ended: Option<&Job>,
    host: Hole,
) -> Job {
    let restart = ended.map(|ended| restart::after(ended, index.now));
    let (restarts, run_at, waiting) = restart.map_or((0, None, String::new()), |restart| {
        (restart.restarts, restart.run_at, restart.waiting)
    });
    let mut meta = BTreeMap::new();
    if let Some(ended) = ended {
        meta.insert(META_REPLACES.to_owned(), ended.id.to_string());
    }
    if let Some(host) = host {
        meta.insert(META_HOST.to_owned(), host.id.to_string());
    }
    Job {
        id: new_id(index.cluster.revision, app, release, process_type, ordinal),
        app,
        release: Some(release),
        process_type: process_type.to_owned(),
        state: JobState::Pending,
        host: None,
        one_off: None,
        meta,
        volumes: vec![],
        run_at,
        restarts,
        waiting,
        stop_reason: None,
        is_drained: false,
        ipv6: None,
        address: None,
        is_unhealthy: false,
        exit: None,
        created_at: index.now,
        updated_at: index.now,
        started_at: None,
        up_at: None,
        ended_at: None,
    }
}

fn new_id(revision: u64, app: AppId, release: ReleaseId, process_type: &str, ordinal: u32) -> JobId {
    let mut name = Vec::with_capacity(44 + process_type.len());
    name.extend(revision.to_be_bytes());
    name.extend(ordinal.to_be_bytes());
    name.extend(app.0.as_bytes());
    name.extend(release.0.as_bytes());
    name.extend(process_type.as_bytes());
    JobId(Uuid::new_v5(&JOB_IDS, &name))
}

impl Batch<'_, '_> {
    /// Since when the longest waiting one waits: who came first is served first.
    pub fn since(&self) -> Option<Timestamp> {
        self.pending.iter().map(|job| job.created_at).min()
    }
}
