//! Jobs: they only ever move towards their end.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use types::{AppId, DeploymentStatus, Exit, Job, JobId, JobState, Timestamp};

use crate::{
    ENDED_JOBS_MAX, ENDED_JOBS_OF_APP_MAX, State,
    command::{JobChange, Rejection},
    event::Subject,
};

impl State {
    pub(crate) fn create_job(&mut self, at: Timestamp, job: Job) -> Result<(), Rejection> {
        self.require_app(job.app)?;
        if self.jobs.contains_key(&job.id) {
            return Ok(());
        }
        // A one-off job may run a release of another app, and images of none.
        if let Some(release) = job.release
            && (!self.releases.contains_key(&release) || self.deleted_releases.contains_key(&release))
        {
            let message = format!("could not find release with ID {release}");
            return Err(Rejection::invalid("", message));
        }
        let images = job.one_off.iter().flat_map(|one_off| &one_off.artifacts);
        if let Some(missing) = images.into_iter().find(|id| !self.artifacts.contains_key(*id)) {
            let message = format!("could not find artifact with ID {missing}");
            return Err(Rejection::invalid("artifacts", message));
        }
        self.jobs_by_app.insert((job.app, job.id));
        let (app, has_ended) = (job.app, job.state == JobState::Down);
        self.put_job(at, job);
        if has_ended {
            self.forget_old_jobs(app);
        }
        Ok(())
    }

    pub(crate) fn change_job(
        &mut self,
        at: Timestamp,
        id: JobId,
        change: JobChange,
    ) -> Result<(), Rejection> {
        match change {
            JobChange::Place {
                host,
                volumes,
                new_volumes,
            } => self.place_job(at, id, host, volumes, new_volumes),
            change => self.move_job(at, id, change),
        }
    }

    pub(crate) fn move_job(&mut self, at: Timestamp, id: JobId, change: JobChange) -> Result<(), Rejection> {
        let found = self
            .jobs
            .get(&id)
            .ok_or_else(|| Rejection::not_found(format!("job {id}")))?;
        let mut job = Job::clone(found);
        if !move_on(&mut job, at, change) {
            return Ok(());
        }
        if looks_the_same(found, &job) {
            // Whoever prints a line for each event would print the last one again.
            self.jobs.insert(id, Arc::new(job));
            return Ok(());
        }
        job.updated_at = at;
        let has_ended = job.state == JobState::Down;
        let (app, release) = (job.app, job.release);
        let ended = has_ended.then(|| job.clone());
        self.put_job(at, job);
        if let Some(ended) = ended {
            self.detach_volumes(at, &ended);
            if let Some(release) = release {
                self.finish_release_deletion(at, release);
            }
            self.forget_old_jobs(app);
        }
        Ok(())
    }

    fn put_job(&mut self, at: Timestamp, job: Job) {
        let job = Arc::new(job);
        self.jobs.insert(job.id, job.clone());
        self.emit(at, Some(job.app), Subject::Job { job: job.clone() });
        let deployment = self.unfinished_deployment(job.app).cloned();
        if let Some(deployment) = deployment
            && deployment.status == DeploymentStatus::Running
            && (Some(deployment.new_release) == job.release || deployment.old_release == job.release)
        {
            let (app, state) = (job.app, job.state);
            self.emit(
                at,
                Some(app),
                Subject::DeploymentJob {
                    deployment,
                    job,
                    state,
                },
            );
        }
    }

    /// Keeps the newest ended jobs of each release and type, from which the scheduler knows how they
    /// fared, and bounds what an app with many releases keeps.
    fn forget_old_jobs(&mut self, app: AppId) {
        let mut ended: Vec<_> = self
            .jobs_of(app)
            .filter(|job| job.state == JobState::Down)
            .cloned()
            .collect();
        ended.sort_by_key(|job| std::cmp::Reverse((job.ended_at, job.id)));
        let mut kept: BTreeMap<_, usize> = BTreeMap::new();
        let mut kept_in_all = 0;
        for job in ended {
            let of_kind = kept.entry((job.release, job.process_type.clone())).or_default();
            if *of_kind < ENDED_JOBS_MAX && kept_in_all < ENDED_JOBS_OF_APP_MAX {
                *of_kind += 1;
                kept_in_all += 1;
            } else {
                self.jobs.remove(&job.id);
                self.jobs_by_app.remove(&(app, job.id));
            }
        }
    }
}

/// Whether users see the same job before and after: an address, a failed check or the last request that
/// was answered matter to the platform only.
fn looks_the_same(before: &Job, after: &Job) -> bool {
    let shown = |job: &Job| {
        let where_it_is = (job.host.clone(), job.volumes.clone());
        (
            job.state,
            where_it_is,
            job.waiting.clone(),
            job.run_at,
            job.exit.clone(),
        )
    };
    shown(before) == shown(after)
}

/// Whether its host, which alone knows addresses, has found out since by which the job is to be reached.
fn says_otherwise(job: &Job, address: Option<IpAddr>, ipv6: Option<Ipv6Addr>) -> bool {
    address.is_some() && job.ipv6 != ipv6
}

/// Changes the job, or says that the change comes too late to matter.
fn move_on(job: &mut Job, at: Timestamp, change: JobChange) -> bool {
    let state = job.state;
    match change {
        JobChange::Place { host, volumes, .. } if state == JobState::Pending => {
            job.host = Some(host);
            job.volumes = volumes;
            job.state = JobState::Starting;
            job.waiting.clear();
            job.run_at = None;
            true
        }
        JobChange::Wait { reason } if state == JobState::Pending && job.waiting != reason => {
            job.waiting = reason;
            true
        }
        JobChange::Started { address } if state < JobState::Down && job.started_at.is_none() => {
            job.started_at = Some(at);
            job.address = address.or(job.address);
            true
        }
        JobChange::Up { address, ipv6 }
            if state == JobState::Starting
                || (state == JobState::Up && (job.is_unhealthy || says_otherwise(job, address, ipv6))) =>
        {
            job.state = JobState::Up;
            job.is_unhealthy = false;
            job.started_at = job.started_at.or(Some(at));
            job.up_at = job.up_at.or(Some(at));
            job.address = address.or(job.address);
            if address.is_some() {
                job.ipv6 = ipv6;
            }
            true
        }
        JobChange::Unhealthy if state == JobState::Up && !job.is_unhealthy => {
            job.is_unhealthy = true;
            true
        }
        JobChange::Stop { reason } if state < JobState::Stopping => {
            job.stop_reason = Some(reason);
            job.waiting.clear();
            if state == JobState::Pending {
                // It is on no host that could report its end.
                job.state = JobState::Down;
                job.ended_at = Some(at);
            } else {
                job.state = JobState::Stopping;
                // Only what is up may have requests in flight.
                job.is_drained = state != JobState::Up;
            }
            true
        }
        JobChange::Drained if state == JobState::Stopping && !job.is_drained => {
            job.is_drained = true;
            true
        }
        JobChange::Down { exit } if state < JobState::Down => {
            // A host that was told to stop a job before it had begun reports that it never ran.
            job.exit =
                Some(exit).filter(|exit| !(job.stop_reason.is_some() && matches!(exit, Exit::Lost(_))));
            job.state = JobState::Down;
            job.is_drained = true;
            job.is_unhealthy = false;
            job.waiting.clear();
            job.ended_at = Some(at);
            true
        }
        _ => false,
    }
}
