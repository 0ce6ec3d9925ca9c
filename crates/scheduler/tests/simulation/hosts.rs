//! What hosts report of their jobs, and how time passes.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use types::*;

use super::{Quality, Simulation, common::*};

impl Simulation {
    pub fn end(&mut self, job: JobId, exit: Exit) {
        let now = self.now;
        self.tell(format!("{job} {exit}"));
        change(&mut self.cluster, job, now, |job| {
            job.state = JobState::Down;
            job.exit = Some(exit);
            job.ended_at = Some(now);
        });
        self.due.remove(&job);
    }

    /// Jobs on hosts that talk to us get a time for what happens to them next.
    pub fn schedule(&mut self) {
        let jobs: Vec<Arc<Job>> = self.cluster.jobs.values().cloned().collect();
        let alive: BTreeSet<JobId> = jobs
            .iter()
            .filter(|job| self.is_heard(job))
            .map(|job| job.id)
            .collect();
        self.due.retain(|job, _| alive.contains(job));
        for job in jobs.iter().filter(|job| alive.contains(&job.id)) {
            if self.due.contains_key(&job.id) {
                continue;
            }
            let quality = self.quality(job);
            let after = match (job.state, quality) {
                (JobState::Starting, Quality::NeverUp) if job.one_off.is_none() => continue,
                (JobState::Starting, _) => self.random.millis(50, 3000),
                (JobState::Up, Quality::Crashes) => self.random.millis(50, 900),
                (JobState::Up, Quality::Flaky) if !self.is_calm => self.random.millis(500, 60_000),
                (JobState::Up, _) if !self.is_calm => self.random.millis(5000, 900_000),
                (JobState::Up, _) if job.is_unhealthy => self.random.millis(500, 3000),
                (JobState::Stopping, _) => self.random.millis(50, 3000),
                _ => continue,
            };
            self.due.insert(job.id, self.now + after);
        }
    }

    pub fn is_heard(&self, job: &Job) -> bool {
        let host = job.host.as_ref().and_then(|host| self.cluster.hosts.get(host));
        job.state != JobState::Down && host.is_some_and(|host| host.state == HostState::Up)
    }

    pub fn quality(&self, job: &Job) -> Quality {
        job.release
            .and_then(|release| self.qualities.get(&release))
            .copied()
            .unwrap_or(Quality::Works)
    }

    pub fn happen(&mut self, id: JobId) {
        self.due.remove(&id);
        let job = self.cluster.jobs[&id].clone();
        let now = self.now;
        let has_port = job.process_type == "web" || job.process_type == "strict";
        match (job.state, self.quality(&job)) {
            (JobState::Starting, Quality::CannotStart) => {
                self.end(id, Exit::NotStarted("no such file".into()))
            }
            (JobState::Starting, Quality::Crashes) if has_port => self.end(id, Exit::Code(1)),
            (JobState::Starting, _) => {
                self.tell(format!("{id} is up"));
                change(&mut self.cluster, id, now, |job| {
                    job.state = JobState::Up;
                    job.up_at = Some(now);
                });
            }
            (JobState::Up, Quality::Works | Quality::Flaky) if self.is_calm => {
                change(&mut self.cluster, id, now, |job| job.is_unhealthy = false);
            }
            (JobState::Up, _) => {
                let exit = match self.random.below(3) {
                    0 => Exit::Code(0),
                    1 => Exit::Code(1),
                    _ => Exit::OutOfMemory,
                };
                self.end(id, exit);
            }
            (JobState::Stopping, _) => self.end(id, Exit::Signal(15)),
            (JobState::Pending | JobState::Down, _) => unreachable!("nothing of it runs"),
        }
    }

    /// Lets time pass to what comes next; returns whether there is anything to come.
    pub fn pass(&mut self, at_most: Duration) -> bool {
        self.schedule();
        let next = self.due.values().copied().chain(self.wake_at).min();
        let end = self.now + at_most;
        let Some(at) = next.filter(|at| *at <= end) else {
            self.now = end;
            return next.is_some();
        };
        self.now = self.now.max(at);
        let due: Vec<JobId> = self
            .due
            .iter()
            .filter(|(_, at)| **at <= self.now)
            .map(|(job, _)| *job)
            .collect();
        for job in due {
            self.happen(job);
        }
        true
    }
}
