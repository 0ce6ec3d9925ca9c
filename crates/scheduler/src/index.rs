//! The cluster as a plan looks at it: jobs by (app, release, type), and what is known of each host.
//!
//! Groups are those of formations that have the plan's attention; all others are as they should be. Jobs that
//! this plan declares lost are in no group.

use std::collections::{BTreeMap, BTreeSet};

use types::{AppId, Host, HostId, HostState, Job, JobId, JobState, ReleaseId, Timestamp};

use crate::{
    Action, Cluster, META_HOST, SILENCE_MAX, Wake,
    memory::{FormationKey, Members, Memory, key_of},
    rebalance, restart,
};

/// What a formation counts by.
pub(crate) type GroupKey<'a> = (AppId, ReleaseId, &'a str);

/// The jobs of one type of one release.
#[derive(Default)]
pub(crate) struct Group<'a> {
    /// Pending, starting and up.
    pub active: Vec<&'a Job>,
    pub stopping: Vec<&'a Job>,
    /// What ended by itself, and what was ended for not being healthy.
    pub crashed: Vec<&'a Job>,
    /// What was told to stop before it was up.
    pub withdrawn: Vec<&'a Job>,
    /// Jobs whose place another of this group took.
    pub followed: BTreeSet<JobId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Up,
    /// Silent, and not yet for long: it keeps its jobs and gets no new ones.
    ///
    /// With no host up, hosts stay so however long they are silent: there is nowhere else to start
    /// anything, and it is likelier that we are the deaf one. A deaf controller is then no outage.
    Silent,
    /// Silent for too long: its jobs are lost.
    Gone,
}

pub(crate) struct HostView<'a> {
    pub host: &'a Host,
    pub standing: Standing,
}

pub(crate) struct Index<'a> {
    pub memory: &'a Memory,
    pub cluster: &'a Cluster,
    pub now: Timestamp,
    /// By id; a host's place in here stands for it elsewhere.
    pub hosts: Vec<HostView<'a>>,
    positions: BTreeMap<&'a str, u32>,
    pub groups: BTreeMap<GroupKey<'a>, Group<'a>>,
    /// One-off jobs that have not ended.
    pub one_offs: Vec<&'a Job>,
    /// Jobs without release and without being one-off: nobody can have wanted them.
    pub strays: Vec<&'a Job>,
    /// Formations that are looked at.
    pub attention: BTreeSet<FormationKey>,
    lost: BTreeMap<JobId, (&'a Job, String)>,
}

/// What the cluster believes of each host now: the table says it, and time.
pub(crate) fn standings(cluster: &Cluster, now: Timestamp) -> BTreeMap<HostId, Standing> {
    let mut wake = Wake { now, at: None };
    let views = views(cluster, &mut wake);
    views
        .into_iter()
        .map(|view| (view.host.id.clone(), view.standing))
        .collect()
}

fn views<'a>(cluster: &'a Cluster, wake: &mut Wake) -> Vec<HostView<'a>> {
    let is_any_up = cluster.hosts.values().any(|host| host.state == HostState::Up);
    let standing = |host: &Host, wake: &mut Wake| match host.state {
        HostState::Up => Standing::Up,
        HostState::Silent { since } if wake.is_ahead(since + SILENCE_MAX) || !is_any_up => Standing::Silent,
        HostState::Silent { .. } => Standing::Gone,
    };
    let hosts = cluster.hosts.values();
    hosts
        .map(|host| HostView {
            host,
            standing: standing(host, wake),
        })
        .collect()
}

impl<'a> Index<'a> {
    pub fn new(memory: &'a Memory, now: Timestamp, wake: &mut Wake) -> Self {
        let cluster = &memory.cluster;
        let hosts = views(cluster, wake);
        let positions = (0..)
            .zip(&hosts)
            .map(|(at, view)| (view.host.id.as_str(), at))
            .collect();
        let mut index = Index {
            memory,
            cluster,
            now,
            hosts,
            positions,
            groups: BTreeMap::new(),
            one_offs: Vec::new(),
            strays: Vec::new(),
            attention: memory.attention.clone(),
            lost: BTreeMap::new(),
        };
        index.find_lost();
        index.attend();
        index.sort_jobs();
        index
    }

    fn find_lost(&mut self) {
        let memory = self.memory;
        let by_host = memory
            .by_host
            .iter()
            .map(|(host, here)| (Some(host), &here.running));
        for (host, jobs) in by_host.chain([(None, &memory.homeless)]) {
            if !jobs.is_empty()
                && let Some(why) = self.why_lost(host)
            {
                let lost = jobs.iter().map(|(id, job)| (*id, (&**job, why.clone())));
                self.lost.extend(lost);
            }
        }
    }

    /// Beside what the memory has noted: what lost a job now, and what is on the way to something.
    fn attend(&mut self) {
        let lost = self.lost.values().filter_map(|(job, _)| key_of(job));
        self.attention.extend(lost);
        for deployment in self.cluster.deployments.values() {
            self.attention.insert((deployment.app, deployment.new_release));
            self.attention
                .extend(deployment.old_release.map(|old| (deployment.app, old)));
        }
        let requests = self.cluster.scale_requests.values();
        self.attention
            .extend(requests.map(|request| (request.app, request.release)));
    }

    fn sort_jobs(&mut self) {
        let memory = self.memory;
        for key in &self.attention {
            for (process_type, members) in memory.groups.get(key).into_iter().flatten() {
                let group = self.sort(members);
                self.groups.insert((key.0, key.1, process_type), group);
            }
        }
        let is_lost = |job: &&Job| self.lost.contains_key(&job.id);
        let loose = |jobs: &'a BTreeMap<JobId, std::sync::Arc<Job>>| -> Vec<&'a Job> {
            let jobs = jobs.values().map(|job| &**job);
            jobs.filter(|job| !is_lost(job)).collect()
        };
        (self.one_offs, self.strays) = (loose(&memory.one_offs), loose(&memory.strays));
    }

    fn sort(&self, members: &'a Members) -> Group<'a> {
        let mut group = Group::default();
        for job in members.values().filter(|job| !self.lost.contains_key(&job.id)) {
            group.followed.extend(restart::replaced_by(job));
            if restart::is_crash(job) {
                group.crashed.push(job);
            }
            match job.state {
                JobState::Pending | JobState::Starting | JobState::Up => group.active.push(job),
                JobState::Stopping => group.stopping.push(job),
                JobState::Down if job.stop_reason.is_some() && job.up_at.is_none() => {
                    group.withdrawn.push(job);
                }
                JobState::Down => {}
            }
        }
        group
    }

    /// Also of a formation that does not have the plan's attention.
    pub fn group_of(&self, (app, release, process_type): GroupKey) -> Option<Group<'a>> {
        let members = self.memory.groups.get(&(app, release))?.get(process_type)?;
        Some(self.sort(members))
    }

    fn why_lost(&self, host: Option<&HostId>) -> Option<String> {
        let Some(host) = host else {
            return Some("it has no host".to_owned());
        };
        match self.view(host) {
            None => Some(format!("host {host} was removed")),
            Some(view) if view.standing == Standing::Gone => {
                Some(format!("host {host} was silent for {} s", SILENCE_MAX.as_secs()))
            }
            Some(_) => None,
        }
    }

    pub fn lost_jobs(&self) -> impl Iterator<Item = Action> {
        self.lost.values().map(|(job, why)| Action::LoseJob {
            job: job.id,
            why: why.clone(),
            label: self.label(job),
        })
    }

    /// Whether this plan declares it lost.
    pub fn is_lost(&self, job: JobId) -> bool {
        self.lost.contains_key(&job)
    }

    pub fn group(&self, app: AppId, release: ReleaseId, process_type: &'a str) -> Option<&Group<'a>> {
        self.groups.get(&(app, release, process_type))
    }

    /// Whether any of a formation's types has two jobs on one host: another host could have one of them.
    pub fn is_stacked(&self, (app, release): FormationKey) -> bool {
        let groups = self
            .groups
            .range((app, release, "")..)
            .take_while(|(key, _)| (key.0, key.1) == (app, release));
        groups.into_iter().any(|(_, group)| rebalance::is_stacked(group))
    }

    pub fn position(&self, host: &str) -> Option<u32> {
        self.positions.get(host).copied()
    }

    pub fn view(&self, host: &HostId) -> Option<&HostView<'a>> {
        self.position(host.as_str()).map(|at| &self.hosts[at as usize])
    }

    /// Where a job is, or has to go.
    pub fn host_position(&self, job: &Job) -> Option<u32> {
        match &job.host {
            Some(host) => self.position(host.as_str()),
            None => self.position(job.meta.get(META_HOST)?),
        }
    }

    pub fn is_on_silent_host(&self, job: &Job) -> bool {
        let view = job.host.as_ref().and_then(|host| self.view(host));
        view.is_some_and(|view| view.standing != Standing::Up)
    }

    /// `shop/web.UUID`: which job, for people.
    pub fn label(&self, job: &Job) -> String {
        let app = self.cluster.apps.get(&job.app).map_or("?", |app| &app.name);
        let process_type = if job.process_type.is_empty() {
            "run"
        } else {
            &job.process_type
        };
        format!("{app}/{process_type}.{}", job.id)
    }
}

impl HostView<'_> {
    /// Whether jobs may be started on it.
    pub fn is_open(&self) -> bool {
        self.standing == Standing::Up && !self.host.is_draining
    }

    pub fn has(&self, tags: Option<&BTreeMap<String, String>>) -> bool {
        tags.is_none_or(|tags| {
            tags.iter()
                .all(|(key, value)| self.host.tags.get(key) == Some(value))
        })
    }
}
