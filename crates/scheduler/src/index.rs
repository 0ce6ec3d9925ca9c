//! The cluster as a plan looks at it: jobs by (app, release, type), and what is known of each host.
//!
//! Built once per plan in one pass over the jobs. Jobs that this plan declares lost are in no group.

use std::collections::{BTreeMap, BTreeSet};

use types::{AppId, Host, HostId, HostState, Job, JobId, JobState, ReleaseId, Timestamp};

use crate::{Action, Cluster, META_HOST, SILENCE_MAX, Wake, restart};

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
    lost: Vec<(&'a Job, String)>,
    lost_ids: BTreeSet<JobId>,
}

impl<'a> Index<'a> {
    pub fn new(cluster: &'a Cluster, now: Timestamp, wake: &mut Wake) -> Self {
        let is_any_up = cluster.hosts.values().any(|host| host.state == HostState::Up);
        let standing = |host: &Host, wake: &mut Wake| match host.state {
            HostState::Up => Standing::Up,
            HostState::Silent { since } if wake.is_ahead(since + SILENCE_MAX) || !is_any_up => {
                Standing::Silent
            }
            HostState::Silent { .. } => Standing::Gone,
        };
        let hosts = cluster.hosts.values();
        let hosts: Vec<HostView> = hosts
            .map(|host| HostView {
                host,
                standing: standing(host, wake),
            })
            .collect();
        let positions = (0..)
            .zip(&hosts)
            .map(|(at, view)| (view.host.id.as_str(), at))
            .collect();
        let mut index = Index {
            cluster,
            now,
            hosts,
            positions,
            groups: BTreeMap::new(),
            one_offs: Vec::new(),
            strays: Vec::new(),
            lost: Vec::new(),
            lost_ids: BTreeSet::new(),
        };
        index.sort_jobs();
        index
    }

    fn sort_jobs(&mut self) {
        for job in self.cluster.jobs.values() {
            let is_running = matches!(job.state, JobState::Starting | JobState::Up | JobState::Stopping);
            if is_running && let Some(why) = self.why_lost(job) {
                self.lost.push((job, why));
                self.lost_ids.insert(job.id);
                continue;
            }
            if job.one_off.is_some() {
                if job.state != JobState::Down {
                    self.one_offs.push(job);
                }
                continue;
            }
            let Some(release) = job.release else {
                if job.state != JobState::Down {
                    self.strays.push(job);
                }
                continue;
            };
            let group = self
                .groups
                .entry((job.app, release, &job.process_type))
                .or_default();
            group.followed.extend(restart::replaced_by(job));
            if restart::is_crash(job) {
                group.crashed.push(job);
            }
            match job.state {
                JobState::Pending | JobState::Starting | JobState::Up => group.active.push(job),
                JobState::Stopping => group.stopping.push(job),
                JobState::Down => {}
            }
        }
    }

    fn why_lost(&self, job: &Job) -> Option<String> {
        let Some(host) = &job.host else {
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
        self.lost.iter().map(|(job, why)| Action::LoseJob {
            job: job.id,
            why: why.clone(),
            label: self.label(job),
        })
    }

    /// Whether this plan declares it lost.
    pub fn is_lost(&self, job: JobId) -> bool {
        self.lost_ids.contains(&job)
    }

    pub fn group(&self, app: AppId, release: ReleaseId, process_type: &'a str) -> Option<&Group<'a>> {
        self.groups.get(&(app, release, process_type))
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
    pub fn has(&self, tags: Option<&BTreeMap<String, String>>) -> bool {
        tags.is_none_or(|tags| {
            tags.iter()
                .all(|(key, value)| self.host.tags.get(key) == Some(value))
        })
    }
}
