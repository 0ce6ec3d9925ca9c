//! What users, operators and the controller's housekeeping do to a simulated cluster.

use std::{collections::BTreeMap, sync::Arc};

use types::*;

use super::{DEPLOY_TIMEOUT_S, Quality, Simulation, TYPES, common::*};

impl Simulation {
    pub fn scale(&mut self, app: AppId, release: ReleaseId) {
        let Some(row) = self.cluster.formations.get(&(app, release)) else {
            return;
        };
        let mut row = Formation::clone(row);
        let old_processes = row.processes.clone();
        let old_tags = row.tags.clone();
        for name in self.cluster.releases[&release].processes.keys() {
            if self.random.one_in(2) {
                row.processes.insert(name.clone(), self.random.below(5) as u32);
            }
        }
        if self.random.one_in(5) {
            let tags = [("disk".to_owned(), "ssd".to_owned())].into();
            let name = self.random.pick(&TYPES).unwrap();
            if row.tags.remove(name).is_none() {
                row.tags.insert(name.into(), tags);
            }
        }
        row.updated_at = self.now;
        self.forget_scale_requests(|request| request.app == app && request.release == release);
        let request = ScaleRequest {
            id: ScaleRequestId(id_of(&self.serial("scale"))),
            app,
            release,
            state: ScaleRequestState::Pending,
            old_processes,
            new_processes: Some(row.processes.clone()),
            new_tags: (old_tags != row.tags).then(|| row.tags.clone()),
            old_tags,
            created_at: self.now,
            updated_at: self.now,
        };
        self.tell(format!(
            "users scale {release}: {:?} {:?}",
            row.processes, row.tags
        ));
        self.cluster.scale_requests.insert(request.id, Arc::new(request));
        self.cluster.formations.insert((app, release), Arc::new(row));
    }

    pub fn forget_scale_requests(&mut self, which: impl Fn(&ScaleRequest) -> bool) {
        let requests = self.cluster.scale_requests.values();
        let obsolete: Vec<ScaleRequestId> = requests
            .filter(|request| which(request))
            .map(|request| request.id)
            .collect();
        for id in obsolete {
            self.cluster.scale_requests.remove(&id);
        }
    }

    pub fn deploy(&mut self, app: AppId) {
        if self
            .cluster
            .deployments
            .values()
            .any(|deployment| deployment.app == app)
        {
            return;
        }
        let Some(old) = self.cluster.apps[&app].release else {
            return;
        };
        let Some(formation) = self.cluster.formations.get(&(app, old)).cloned() else {
            return;
        };
        let qualities = [
            Quality::Works,
            Quality::Works,
            Quality::Flaky,
            Quality::Crashes,
            Quality::NeverUp,
            Quality::CannotStart,
        ];
        let quality = self.random.pick(&qualities).unwrap();
        let new_release = self.add_release(app, quality);
        let strategies = [
            "all-at-once",
            "all-at-once",
            "one-by-one",
            "one-down-one-up",
            "in-batches",
        ];
        let row = Deployment {
            id: DeploymentId(id_of(&self.serial("deployment"))),
            app,
            old_release: Some(old),
            new_release,
            strategy: strategy(self.random.pick(&strategies).unwrap()),
            status: DeploymentStatus::Pending,
            processes: formation.processes.clone(),
            tags: formation.tags.clone(),
            deploy_timeout: DEPLOY_TIMEOUT_S,
            deploy_batch_size: self.random.one_in(2).then_some(2),
            error: String::new(),
            created_at: self.now,
            finished_at: None,
        };
        self.tell(format!("users deploy {new_release} by {:?}", row.strategy));
        self.cluster.deployments.insert(row.id, Arc::new(row));
    }

    pub fn kill(&mut self, job: JobId) {
        self.tell(format!("users kill {job}"));
        change(&mut self.cluster, job, self.now, |job| {
            job.stop_reason = Some(StopReason::Killed);
            job.state = if job.state == JobState::Pending {
                JobState::Down
            } else {
                JobState::Stopping
            };
        });
    }

    pub fn run_one_off(&mut self, app: AppId) {
        let name = self.serial("run");
        let mut row = job(&name, "v1", "");
        row.app = app;
        row.release = self.cluster.apps[&app].release;
        row.one_off = Some(OneOff::default());
        row.created_at = self.now;
        self.tell(format!("users run {}", row.id));
        self.cluster.jobs.insert(row.id, Arc::new(row));
    }

    pub fn trouble(&mut self) {
        let hosts: Vec<HostId> = self.cluster.hosts.keys().cloned().collect();
        let apps: Vec<AppId> = self.cluster.apps.keys().copied().collect();
        let active: Vec<JobId> = self
            .cluster
            .jobs
            .values()
            .filter(|job| job.is_active())
            .map(|job| job.id)
            .collect();
        match self.random.below(27) {
            0..=2 => {
                let Some(id) = self.random.pick(&hosts) else {
                    return;
                };
                self.toggle_host(&id);
            }
            3 if self.random.one_in(3) => {
                let Some(id) = self.random.pick(&hosts) else {
                    return;
                };
                self.tell(format!("host {id} is removed"));
                self.cluster.hosts.remove(&id);
            }
            4 if hosts.len() < 6 => self.add_host(),
            5 => {
                let Some(id) = self.random.pick(&hosts) else {
                    return;
                };
                self.tell(format!("host {id} changes its tags"));
                let row = Arc::make_mut(self.cluster.hosts.get_mut(&id).unwrap());
                if row.tags.remove("disk").is_none() {
                    row.tags.insert("disk".into(), "ssd".into());
                }
            }
            6..=9 => {
                let Some(app) = self.random.pick(&apps) else {
                    return;
                };
                let releases: Vec<ReleaseId> = self
                    .cluster
                    .formations
                    .keys()
                    .filter(|(of, _)| *of == app)
                    .map(|(_, release)| *release)
                    .collect();
                if let Some(release) = self.random.pick(&releases) {
                    self.scale(app, release);
                }
            }
            10..=15 => {
                let Some(app) = self.random.pick(&apps) else {
                    return;
                };
                self.deploy(app);
            }
            16..=17 => {
                if let Some(job) = self.random.pick(&active) {
                    self.kill(job);
                }
            }
            18..=19 => {
                if let Some(job) = self.random.pick(&active)
                    && self.cluster.jobs[&job].state == JobState::Up
                {
                    self.tell(format!("{job} turns healthy or not"));
                    change(&mut self.cluster, job, self.now, |job| {
                        job.is_unhealthy = !job.is_unhealthy
                    });
                }
            }
            20 => {
                if let Some(app) = self.random.pick(&apps) {
                    self.run_one_off(app);
                }
            }
            21 => self.prune(),
            22 if self.random.one_in(10) => {
                if let Some(app) = self.random.pick(&apps) {
                    self.tell(format!("users delete {app}"));
                    self.cluster.apps.remove(&app);
                    self.forget_scale_requests(|request| request.app == app);
                }
            }
            23 if apps.len() < 3 => self.add_app(),
            25..=26 => {
                let Some(id) = self.random.pick(&hosts) else {
                    return;
                };
                let row = Arc::make_mut(self.cluster.hosts.get_mut(&id).unwrap());
                row.is_draining = !row.is_draining;
                let how = if row.is_draining { "drain" } else { "undrain" };
                self.tell(format!("operators {how} {id}"));
            }
            24 => {
                let volumes: Vec<VolumeId> = self.cluster.volumes.keys().copied().collect();
                if let Some(id) = self.random.pick(&volumes) {
                    self.tell(format!("users decommission {id}"));
                    let now = self.now;
                    let row = Arc::make_mut(self.cluster.volumes.get_mut(&id).unwrap());
                    row.decommissioned_at = Some(now);
                }
            }
            _ => {}
        }
    }

    pub fn toggle_host(&mut self, id: &HostId) {
        let row = Arc::make_mut(self.cluster.hosts.get_mut(id).unwrap());
        if row.state == HostState::Up {
            row.state = HostState::Silent { since: self.now };
            self.tell(format!("host {id} is silent"));
            return;
        }
        let before = row.clone();
        row.state = HostState::Up;
        row.follow_up(Some(&before), self.now);
        let has_rebooted = self.random.one_in(2);
        self.tell(format!(
            "host {id} is back{}",
            if has_rebooted { ", rebooted" } else { "" }
        ));
        if has_rebooted {
            let here: Vec<JobId> = self
                .cluster
                .jobs
                .values()
                .filter(|job| job.host.as_ref() == Some(id) && job.state != JobState::Down)
                .map(|job| job.id)
                .collect();
            for job in here {
                self.end(job, Exit::Lost("the host started anew".into()));
            }
        }
    }

    /// What the controller does to ended rows: the newest ten of each group stay.
    pub fn prune(&mut self) {
        let mut groups: BTreeMap<_, Vec<(Option<Timestamp>, JobId)>> = BTreeMap::new();
        for job in self
            .cluster
            .jobs
            .values()
            .filter(|job| job.state == JobState::Down)
        {
            let group = groups
                .entry((job.app, job.release, job.process_type.clone()))
                .or_default();
            group.push((job.ended_at, job.id));
        }
        for group in groups.values_mut() {
            group.sort();
            for (_, job) in group.iter().rev().skip(10) {
                self.cluster.jobs.remove(job);
            }
        }
    }
}
