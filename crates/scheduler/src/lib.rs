//! Decides which jobs should run on which hosts.
//!
//! [`plan`] compares what is wanted with what is, and says what to change. It is a pure function:
//! the same [`Cluster`] and the same `now` always give the same [`Plan`], so a plan can be computed
//! by any controller, shown to a person before it is carried out, and replayed in a test.
//!
//! ```text
//!            memory      jobs by (app, release, type) and by host, kept up to date from plan to plan
//!            index       who is lost, the jobs of formations that need looking at
//! Cluster ─▶ deploy      moves the counts of two releases, ends deployments
//!            diff        per (app, release, type): what is missing, what is too many
//!            place       a host for every pending job, or the reason why there is none  ─▶ Plan
//!            volumes     what of its type's data a job gets, which binds it to their host
//!            rebalance   moves jobs to hosts that have few
//! ```
//!
//! What a reader would get wrong:
//! * A plan is level-triggered. Nothing that decides is remembered between plans; a plan that was carried
//!   out half, or twice, does no harm, as the next one starts from what is. What a [`Planner`] keeps is only
//!   an index of the rows, so that a plan costs what has changed and not what there is.
//! * After a plan has been carried out, planning again at the same time gives an empty one: a
//!   deployment's new counts are already followed by the starts and stops in the same plan.
//! * The rows of ended jobs matter: an ended job that no other names in [`META_REPLACES`] is how the
//!   back-off is known, and ended jobs of the new release are how a deployment knows that it fails.
//!   Whoever prunes them keeps the newest ten of each (app, release, type).
//!
//! Nothing here starts or stops anything; the controller carries plans out.

mod action;
mod deploy;
mod deploy_failure;
mod diff;
mod index;
mod memory;
mod place;
mod rebalance;
mod restart;
mod surplus;
mod volumes;
mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use types::{
    App, AppId, Deployment, DeploymentId, Formation, Host, HostId, Job, JobId, Release, ReleaseId,
    ScaleRequest, ScaleRequestId, ScaleRequestState, Table, Timestamp, Volume, VolumeId,
};

pub use action::Action;
pub use place::MEMORY_UNDECLARED_BYTES;
pub use rebalance::CALM_MIN;
pub use restart::RUN_LONG_MIN;

/// How long a silent host keeps its jobs.
///
/// Shorter loses work to a network hiccup or a busy machine; longer leaves an app short of
/// processes. Nothing new is placed on a host from its first silent moment. A leader that dies with its host
/// takes 1.6 s to be replaced, and the one who follows counts from there: five seconds leave one to start what
/// is lost within eight.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How long a job whose type has no port must have been up before a deployment trusts it.
///
/// Such a job is up as soon as its process runs, also when it is about to end for want of a module
/// or a variable; interpreters find that out within half a second. Types with a port prove
/// themselves by opening it.
pub const STEADY_MIN: Duration = Duration::from_secs(1);

/// Job metadata: the host that the job has to run on. Users ask for one with one-off jobs; omni jobs
/// are created for a host each.
pub const META_HOST: &str = "flynn-host";

/// Job metadata: the ended job whose place this one took, which is where its restarts come from.
pub const META_REPLACES: &str = "flynn-replaces";

/// Job metadata: the job on another host that this one was started to take the place of.
pub const META_MOVES: &str = "flynn-moves";

/// All that a plan is made from: cheap clones of the store's tables.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    pub apps: Table<AppId, App>,
    pub releases: Table<ReleaseId, Release>,
    pub formations: Table<(AppId, ReleaseId), Formation>,
    /// Pending ones; others are ignored.
    pub scale_requests: Table<ScaleRequestId, ScaleRequest>,
    /// Unfinished ones; others are ignored.
    pub deployments: Table<DeploymentId, Deployment>,
    /// All that have not ended, and those that ended lately.
    pub jobs: Table<JobId, Job>,
    pub hosts: Table<HostId, Host>,
    pub volumes: Table<VolumeId, Volume>,
    /// Grows with every change of state: the ids of new jobs are derived from it, so that the same
    /// plan carried out twice makes each job once, and no two plans make the same.
    pub revision: u64,
}

/// What to change, in an order in which every beginning of it is safe to stop after.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// When to plan again if nothing else changes; always later than the plan's own time.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }
}

/// One line per action.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.actions.iter().try_for_each(|action| writeln!(f, "{action}"))
    }
}

/// What to change in `cluster` so that it becomes what its users want.
pub fn plan(cluster: &Cluster, now: Timestamp) -> Plan {
    Planner::default().plan(cluster, now)
}

/// Makes one plan after another and gives the same ones as [`plan`], only faster: it looks again only at what
/// has changed since its last one, and at what is not yet as it should be.
#[derive(Default)]
pub struct Planner {
    memory: memory::Memory,
    /// What was believed of each host; it changes with time alone, too.
    standings: BTreeMap<HostId, index::Standing>,
}

impl Planner {
    pub fn plan(&mut self, cluster: &Cluster, now: Timestamp) -> Plan {
        self.memory.follow(cluster);
        let standings = index::standings(cluster, now);
        let hosts: BTreeSet<&HostId> = standings.keys().chain(self.standings.keys()).collect();
        for host in hosts {
            if standings.get(host) != self.standings.get(host) {
                self.memory.attend_to_host(host);
            }
        }
        self.standings = standings;

        let (plan, looked_at) = make(&self.memory, now);
        self.memory.attention = looked_at.unfinished;
        for (key, goes_by_hosts) in looked_at.formations {
            match goes_by_hosts {
                true => self.memory.by_hosts.insert(key),
                false => self.memory.by_hosts.remove(&key),
            };
        }
        plan
    }
}

/// What a plan has learnt for the next.
struct LookedAt {
    /// Formations with something to do, or to wait for.
    unfinished: BTreeSet<(AppId, ReleaseId)>,
    /// All that were looked at, and whether they depend on which hosts there are.
    formations: BTreeMap<(AppId, ReleaseId), bool>,
}

fn make(memory: &memory::Memory, now: Timestamp) -> (Plan, LookedAt) {
    let cluster = &memory.cluster;
    let mut wake = Wake { now, at: None };
    let index = index::Index::new(memory, now, &mut wake);
    let mut actions: Vec<Action> = index.lost_jobs().collect();

    let mut wanted = wanted::Wanted::new(cluster);
    let deploying = deploy::advance_all(&index, &mut wanted, &mut wake, &mut actions);

    let changes = diff::compare(&index, &wanted, &mut wake);
    actions.extend(changes.stops.iter().map(|(job, reason)| Action::StopJob {
        job: job.id,
        reason: *reason,
        label: index.label(job),
    }));
    let places = place::place_all(&index, &changes, &mut wake, &mut actions);
    let uneven = rebalance::rebalance(
        &index,
        &wanted,
        &changes,
        &deploying,
        places,
        &mut wake,
        &mut actions,
    );
    complete_scale_requests(cluster, &deploying, &changes.unsettled, &mut actions);

    let stopping = changes.stops.iter().filter_map(|(job, _)| memory::key_of(job));
    let placing = changes.batches.iter().filter_map(|batch| batch.key);
    let unfinished = changes.unsettled.iter().copied().chain(stopping);
    let looked_at = LookedAt {
        unfinished: unfinished
            .chain(placing.map(|(app, release, _)| (app, release)))
            .chain(uneven)
            .collect(),
        formations: index
            .attention
            .iter()
            .map(|key| (*key, wanted.goes_by_hosts(*key) || index.is_stacked(*key)))
            .collect(),
    };
    let plan = Plan {
        actions,
        wake_at: wake.at,
    };
    (plan, looked_at)
}

/// A scale request is complete when its jobs have followed, and not while a deployment moves the
/// counts of its release: until then it is what the deployment takes its own counts from.
fn complete_scale_requests(
    cluster: &Cluster,
    deploying: &BTreeSet<(AppId, ReleaseId)>,
    unsettled: &BTreeSet<(AppId, ReleaseId)>,
    actions: &mut Vec<Action>,
) {
    for request in cluster.scale_requests.values() {
        let key = (request.app, request.release);
        let is_moving = deploying.contains(&key) || unsettled.contains(&key);
        if request.state == ScaleRequestState::Pending && !is_moving {
            actions.push(Action::CompleteScaleRequest { request: request.id });
        }
    }
}

/// Collects the times at which a plan's answer changes by itself; keeps the earliest to come.
struct Wake {
    now: Timestamp,
    at: Option<Timestamp>,
}

impl Wake {
    /// Whether `at` is still to come; if so, the plan is to be made again then.
    fn is_ahead(&mut self, at: Timestamp) -> bool {
        if at <= self.now {
            return false;
        }
        self.at = Some(self.at.map_or(at, |earliest| earliest.min(at)));
        true
    }
}
