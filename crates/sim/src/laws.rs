//! What must be true whatever happens: checked at every step, at every command, and when all is calm again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use scheduler::SILENCE_MAX;
use state::{Change, Command, JobChange, State};
use types::*;

use crate::{
    machine::Stage,
    world::{BEGIN, World},
};

/// How long a plan and what contradicts it may be on their way at the same time.
const IN_WRITING: Duration = Duration::from_millis(300);
/// What a machine may still begin after it has lost all contact: what it was told just before.
const AFTERMATH: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    pub key: (AppId, ReleaseId),
    pub process_type: String,
    pub count: u32,
    pub is_acknowledged: bool,
}

#[derive(Default)]
pub struct Laws {
    /// When a leader last heard each host, and when before that.
    contacts: BTreeMap<usize, (Timestamp, Timestamp)>,
    /// What users have asked for, in the order in which they did.
    pub wishes: BTreeMap<u64, Wish>,
    /// Jobs that were declared lost with their host, and jobs that were made.
    pub lost: u64,
    pub created: u64,
}

impl Laws {
    pub fn contact(&mut self, host: usize, now: Timestamp) {
        let entry = self.contacts.entry(host).or_insert((BEGIN, BEGIN));
        *entry = (now, entry.0);
    }

    pub fn acknowledge(&mut self, wish: u64) {
        if let Some(wish) = self.wishes.get_mut(&wish) {
            wish.is_acknowledged = true;
        }
    }
}

impl World {
    /// A machine that is on its own begins nothing.
    pub fn check_begin(&mut self, host: usize, job: &Job) {
        let heard = self.machines[host].heard_leader_at;
        assert!(
            self.now.since(heard) <= AFTERMATH,
            "host{host} begins {} {:?} after it last heard a leader",
            job.id,
            self.now.since(heard)
        );
    }

    /// No host is given up before it was silent for the whole grace, by the true time.
    pub fn note_command(&mut self, command: &Command) {
        let changes = match &command.change {
            Change::All { changes } => changes.clone(),
            change => vec![change.clone()],
        };
        for change in changes {
            match change {
                Change::CreateJob { .. } => self.laws.created += 1,
                Change::Job {
                    job,
                    change:
                        JobChange::Down {
                            exit: Exit::Lost(why),
                        },
                } if why.contains("was silent") => {
                    let row = self.truth.jobs.get(&job);
                    let Some(row) = row.filter(|row| row.state != JobState::Down) else {
                        continue;
                    };
                    self.laws.lost += 1;
                    let host = row.host.clone().expect("what is lost was on a host");
                    let number = self.machines.iter().position(|machine| machine.id == host);
                    let number = number.expect("a machine");
                    let (last, before) = self.laws.contacts.get(&number).copied().unwrap_or((BEGIN, BEGIN));
                    // That it was heard again is perhaps not yet written.
                    let is_news = self.now.since(last) < IN_WRITING;
                    let silence = self.now.since(if is_news { before } else { last });
                    // A word may be on its way for a second, and a leader may be as new as that.
                    let grace = SILENCE_MAX - Duration::from_millis(1500);
                    assert!(silence >= grace, "host{number} is given up after {silence:?}");
                }
                _ => {}
            }
        }
    }

    pub fn check_always(&mut self) {
        let mut used: BTreeMap<VolumeId, JobId> = BTreeMap::new();
        for machine in &self.machines {
            for (job, process) in machine.running() {
                for volume in &process.volumes {
                    let other = used.insert(*volume, *job);
                    assert!(
                        other.is_none(),
                        "volume {volume} has jobs {job} and {other:?} at once"
                    );
                    let row = self.truth.volumes.get(volume);
                    assert!(
                        row.is_none_or(|row| row.host_id == machine.id),
                        "{job} runs on {} without its volume",
                        machine.id
                    );
                }
            }
        }
        for machine in self.machines.iter().filter(|machine| machine.is_on) {
            assert!(
                machine.applied <= self.log.len(),
                "{} knows what was never said",
                machine.id
            );
        }
    }

    /// When nothing was wrong for long enough, all is as users asked, and stays so.
    pub fn check_settled(&mut self) {
        self.let_moves_end();
        let truth = self.truth.clone();
        for job in truth.jobs.values().filter(|job| job.state == JobState::Pending) {
            assert!(!job.waiting.is_empty(), "{} waits without a reason", job.id);
        }
        self.check_wishes();
        let open = truth.hosts.values().filter(|host| !host.is_draining).count();
        for formation in truth.formations.values() {
            let release = &truth.releases[&formation.release];
            for (name, process) in &release.processes {
                let count = formation.processes.get(name).copied().unwrap_or(0) as usize;
                let wanted = if process.omni { count.min(1) * open } else { count };
                let is_alike = |job: &Job| {
                    job.release == Some(release.id) && job.process_type == *name && job.is_active()
                };
                let states = truth
                    .jobs
                    .values()
                    .filter(|job| is_alike(job))
                    .map(|job| job.state);
                let states: Vec<JobState> = states.collect();
                let up = states.iter().filter(|state| **state == JobState::Up).count();
                assert_eq!((up, states.len()), (wanted, wanted), "{name} of {}", release.id);
            }
        }
        let wanted: BTreeSet<(HostId, JobId)> = truth
            .jobs
            .values()
            .filter(|job| job.is_active())
            .filter_map(|job| Some((job.host.clone()?, job.id)))
            .collect();
        let running: BTreeSet<(HostId, JobId)> = self
            .machines
            .iter()
            .flat_map(|machine| machine.running().map(|(job, _)| (machine.id.clone(), *job)))
            .collect();
        assert_eq!(running, wanted, "what runs is not what is wanted");
        for (host, job) in &running {
            let machine = self.machines.iter().find(|machine| machine.id == *host);
            let process = &machine.expect("a machine").processes[job];
            assert_eq!(process.stage, Stage::Up);
            let has_data = !process.volumes.is_empty();
            assert!(
                has_data || !truth.hosts[host].is_draining,
                "{job} stays on {host}, which is drained"
            );
        }
        let (commands, now) = (self.log.len(), self.now);
        self.run(Duration::from_secs(120));
        let is_moving: BTreeSet<JobId> = self
            .truth
            .jobs
            .values()
            .filter_map(|job| Some([job.id, moved_by(job)?]))
            .flatten()
            .collect();
        let other = self.log[commands..]
            .iter()
            .find(|command| !is_of_a_move(&command.change, &is_moving));
        assert!(
            other.is_none(),
            "a settled cluster does not stay still: after {now} came {other:?}"
        );
    }

    /// Jobs may move to hosts that have few for as long as they like, but one at a time for each host.
    fn let_moves_end(&mut self) {
        let is_moving = |truth: &State| {
            let active = |id: &JobId| truth.jobs.get(id).is_some_and(|job| job.is_active());
            let mut jobs = truth.jobs.values();
            jobs.any(|job| {
                let is_moved = job.is_active() && moved_by(job).is_some_and(|moved| active(&moved));
                is_moved || matches!(job.state, JobState::Starting | JobState::Stopping)
            })
        };
        for _ in 0..100 {
            if !is_moving(&self.truth) {
                return;
            }
            self.run(Duration::from_millis(500));
        }
    }

    /// Of what users asked for one count, the last that was acknowledged stands, or one that was asked for
    /// later and that nobody answered.
    fn check_wishes(&self) {
        let mut by_type: BTreeMap<(AppId, ReleaseId, &str), Vec<&Wish>> = BTreeMap::new();
        for wish in self.laws.wishes.values() {
            let key = (wish.key.0, wish.key.1, &*wish.process_type);
            by_type.entry(key).or_default().push(wish);
        }
        for ((app, release, name), wishes) in by_type {
            let last = wishes.iter().rposition(|wish| wish.is_acknowledged);
            let may_be: Vec<u32> = wishes[last.unwrap_or(0)..]
                .iter()
                .map(|wish| wish.count)
                .collect();
            let formation = self.truth.formations.get(&(app, release));
            let count = formation
                .and_then(|row| row.processes.get(name))
                .copied()
                .unwrap_or(0);
            let is_untouched = last.is_none() && count == 0;
            assert!(
                may_be.contains(&count) || is_untouched,
                "{name} is {count}; users asked for {may_be:?}"
            );
        }
    }
}

/// The job whose place this one was started to take.
fn moved_by(job: &Job) -> Option<JobId> {
    job.meta.get(scheduler::META_MOVES)?.parse().ok()
}

fn is_of_a_move(change: &Change, jobs: &BTreeSet<JobId>) -> bool {
    match change {
        Change::All { changes } => changes.iter().all(|change| is_of_a_move(change, jobs)),
        Change::CreateJob { job } => moved_by(job).is_some(),
        Change::Job { job, .. } => jobs.contains(job),
        _ => false,
    }
}

impl World {
    /// Jobs that were lost with their host, and jobs that were made.
    pub fn laws(&self) -> (u64, u64) {
        (self.laws.lost, self.laws.created)
    }

    pub fn check(&mut self) {
        self.check_settled();
    }

    /// Lets time pass until as many jobs of each type serve as users want, on machines that have power.
    pub fn until_wanted_runs(&mut self, at_most: Duration) -> Duration {
        let began = self.now;
        while !self.wanted_runs() && self.now.since(began) < at_most {
            self.run(crate::world::STEP);
        }
        self.now.since(began)
    }

    fn wanted_runs(&self) -> bool {
        let mut up: BTreeMap<(ReleaseId, &str), usize> = BTreeMap::new();
        for machine in self.machines.iter().filter(|machine| machine.is_on) {
            for (id, process) in machine
                .running()
                .filter(|(_, process)| process.stage == Stage::Up)
            {
                let Some(job) = self.truth.jobs.get(id).filter(|job| job.is_active()) else {
                    continue;
                };
                if let Some(release) = job.release.filter(|_| process.volumes.is_empty()) {
                    *up.entry((release, &job.process_type)).or_default() += 1;
                }
            }
        }
        self.truth.formations.values().all(|formation| {
            let types = &self.truth.releases[&formation.release].processes;
            formation.processes.iter().all(|(name, count)| {
                let process = &types[name];
                // Data wait for their host, and omni types have a place on it.
                let is_bound = process.omni || !process.volumes.is_empty();
                is_bound || up.get(&(formation.release, name)).copied().unwrap_or(0) >= *count as usize
            })
        })
    }
}
