//! What a planner keeps from one plan to the next, so that it need not look at every job again: jobs by
//! (app, release), by host, what hosts have given away, and which formations are not as they should be.
//!
//! [`Memory::follow`] brings it up to date from the differences between two clusters, which tables that share
//! their rows tell cheaply. Nothing in here is known from anywhere else: a memory that begins empty comes to
//! the same plans, which the simulation checks after every step.
//!
//! A formation has our attention while its jobs are not yet what is wanted, and when something that it
//! depends on has changed: its jobs, its rows, or a host. All others would give what they gave before: nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use imbl::ordmap::DiffItem;
use types::{AppId, HostId, Job, JobId, JobState, Release, ReleaseId, Table};

use crate::{
    Cluster,
    place::{Need, Slot},
};

pub(crate) type FormationKey = (AppId, ReleaseId);

/// Jobs of one type of one release by id, ended ones too.
pub(crate) type Members = BTreeMap<JobId, Arc<Job>>;

#[derive(Default)]
pub(crate) struct Memory {
    /// As of the last plan.
    pub cluster: Cluster,
    pub groups: BTreeMap<FormationKey, BTreeMap<String, Members>>,
    apps_of_releases: BTreeMap<ReleaseId, BTreeSet<AppId>>,
    pub by_host: BTreeMap<HostId, OnHost>,
    /// Jobs that run and have no host.
    pub homeless: Members,
    /// One-off jobs that have not ended.
    pub one_offs: Members,
    /// Jobs without release and without being one-off: nobody can have wanted them.
    pub strays: Members,
    /// Formations that are not yet as they should be, or that something has happened to.
    pub attention: BTreeSet<FormationKey>,
    /// Formations that depend on which hosts there are: with omni types, with tags, or with two jobs on one
    /// host.
    pub by_hosts: BTreeSet<FormationKey>,
}

#[derive(Default)]
pub(crate) struct OnHost {
    pub running: Members,
    /// What jobs that have not ended take of it.
    pub taken: Slot,
}

impl Memory {
    pub fn follow(&mut self, cluster: &Cluster) {
        let before = std::mem::take(&mut self.cluster);
        // Jobs first: what they took was counted by the releases before.
        for change in before.jobs.diff(&cluster.jobs) {
            match change {
                DiffItem::Add(_, job) => self.add(job, &cluster.releases),
                DiffItem::Update { old, new } => {
                    self.remove(old.1, &before.releases);
                    self.add(new.1, &cluster.releases);
                }
                DiffItem::Remove(_, job) => self.remove(job, &before.releases),
            }
        }
        for change in before.releases.diff(&cluster.releases) {
            let (id, old, new) = sides(change);
            self.recount(*id, old, new, (&before, cluster));
            let apps = self.apps_of_releases.get(id).into_iter().flatten().copied();
            let row = old.or(new).map(|row| row.app_id);
            self.attention.extend(apps.chain(row).map(|app| (app, *id)));
        }
        for change in before.formations.diff(&cluster.formations) {
            self.attention.insert(*sides(change).0);
        }
        for change in before.apps.diff(&cluster.apps) {
            self.attend_to_app(*sides(change).0, cluster);
        }
        for change in before.hosts.diff(&cluster.hosts) {
            self.attend_to_host(sides(change).0);
        }
        self.by_host
            .retain(|_, here| !here.running.is_empty() || here.taken != Slot::default());
        self.cluster = cluster.clone();
    }

    fn attend_to_app(&mut self, app: AppId, cluster: &Cluster) {
        let (first, last) = (
            (app, ReleaseId(types::Uuid::nil())),
            (app, ReleaseId(types::Uuid::max())),
        );
        let formations = cluster.formations.range(first..=last).map(|(key, _)| *key);
        let groups = self.groups.range(first..=last).map(|(key, _)| *key);
        self.attention.extend(formations.chain(groups));
    }

    /// Something is another way with a host: what runs on it may have to go, and what goes by hosts may
    /// find another.
    pub fn attend_to_host(&mut self, host: &HostId) {
        let here = self.by_host.get(host).into_iter();
        let keys = here.flat_map(|here| here.running.values().filter_map(|job| key_of(job)));
        self.attention.extend(keys);
        self.attention.extend(self.by_hosts.iter().copied());
    }

    fn add(&mut self, job: &Arc<Job>, releases: &Table<ReleaseId, Release>) {
        match &job.host {
            Some(host) if job.state != JobState::Down => {
                let here = self.by_host.entry(host.clone()).or_default();
                here.taken += Slot::of(Need::of_job(releases, job));
                if is_running(job) {
                    here.running.insert(job.id, job.clone());
                }
            }
            None if is_running(job) => drop(self.homeless.insert(job.id, job.clone())),
            _ => {}
        }
        match key_of(job) {
            Some(key) => {
                self.attention.insert(key);
                let types = self.groups.entry(key).or_insert_with(|| {
                    self.apps_of_releases.entry(key.1).or_default().insert(key.0);
                    BTreeMap::new()
                });
                match types.get_mut(&job.process_type) {
                    Some(members) => drop(members.insert(job.id, job.clone())),
                    None => {
                        let members = Members::from([(job.id, job.clone())]);
                        types.insert(job.process_type.clone(), members);
                    }
                }
            }
            None if job.state == JobState::Down => {}
            None if job.one_off.is_some() => drop(self.one_offs.insert(job.id, job.clone())),
            None => drop(self.strays.insert(job.id, job.clone())),
        }
    }

    fn remove(&mut self, job: &Job, releases: &Table<ReleaseId, Release>) {
        if let Some(here) = job.host.as_ref().and_then(|host| self.by_host.get_mut(host))
            && job.state != JobState::Down
        {
            here.taken -= Slot::of(Need::of_job(releases, job));
            here.running.remove(&job.id);
        }
        self.homeless.remove(&job.id);
        self.one_offs.remove(&job.id);
        self.strays.remove(&job.id);
        let Some(key) = key_of(job) else { return };
        self.attention.insert(key);
        let Some(types) = self.groups.get_mut(&key) else {
            return;
        };
        if let Some(members) = types.get_mut(&job.process_type) {
            members.remove(&job.id);
            if members.is_empty() {
                types.remove(&job.process_type);
            }
        }
        if types.is_empty() {
            self.groups.remove(&key);
            if let Some(apps) = self.apps_of_releases.get_mut(&key.1) {
                apps.remove(&key.0);
                if apps.is_empty() {
                    self.apps_of_releases.remove(&key.1);
                }
            }
        }
    }

    /// A release came or went under its jobs: they need something else from now on. Those that changed in
    /// the same step were counted by the release that is current.
    fn recount(
        &mut self,
        id: ReleaseId,
        old: Option<&Arc<Release>>,
        new: Option<&Arc<Release>>,
        (before, after): (&Cluster, &Cluster),
    ) {
        if old.map(|row| &row.processes) == new.map(|row| &row.processes) {
            return;
        }
        let apps = self.apps_of_releases.get(&id).into_iter().flatten();
        let of_groups = apps.flat_map(|app| self.groups.get(&(*app, id)).into_iter().flatten());
        let jobs = of_groups.flat_map(|(_, members)| members.values());
        let one_offs = self.one_offs.values().filter(|job| job.release == Some(id));
        for job in jobs.chain(one_offs).filter(|job| job.state != JobState::Down) {
            let was_counted_before = before.jobs.get(&job.id) == Some(job);
            if let Some(here) = job.host.as_ref().and_then(|host| self.by_host.get_mut(host))
                && was_counted_before
            {
                here.taken -= Slot::of(Need::of_job(&before.releases, job));
                here.taken += Slot::of(Need::of_job(&after.releases, job));
            }
        }
    }
}

/// What a job counts for, unless it is a one-off job or nobody's.
pub(crate) fn key_of(job: &Job) -> Option<FormationKey> {
    match job.one_off {
        Some(_) => None,
        None => Some((job.app, job.release?)),
    }
}

fn is_running(job: &Job) -> bool {
    matches!(job.state, JobState::Starting | JobState::Up | JobState::Stopping)
}

fn sides<'x, K, V>(change: DiffItem<'x, 'x, K, V>) -> (&'x K, Option<&'x V>, Option<&'x V>) {
    match change {
        DiffItem::Add(key, new) => (key, None, Some(new)),
        DiffItem::Update { old, new } => (old.0, Some(old.1), Some(new.1)),
        DiffItem::Remove(key, old) => (key, Some(old), None),
    }
}
