//! One host: its copy of the state, what runs on it, and what it says of that.
//!
//! The agent's rules: what the controller's list has is run, what a whole list lacks is stopped, and a
//! controller that says nothing is no reason for anything. A job that has been begun here is never begun again.

use std::{collections::BTreeMap, time::Duration};

use scheduler::Planner;
use state::{Change, Command, JobChange, State};
use types::*;

use crate::world::{Event, From, World};

const BEAT: Duration = Duration::from_secs(1);
/// How long a report that nobody confirmed waits before it is sent again.
const REPORT_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stage {
    Starting,
    Up,
    Ending,
    Ended,
}

/// A job that was begun here: its directory is on the disk until the controller knows of its end.
#[derive(Debug, Clone)]
pub struct Process {
    pub stage: Stage,
    pub exit: Option<Exit>,
    pub volumes: Vec<VolumeId>,
    is_reported: bool,
    reported_at: Option<Timestamp>,
}

pub struct Machine {
    pub number: usize,
    pub id: HostId,
    pub is_on: bool,
    /// How many times it was switched on.
    pub boot: u64,
    pub booted_at: Timestamp,
    /// How far its clock is ahead of the true time, in microseconds.
    skew_micros: i64,
    /// What it has learnt to add to its clock: the cluster's time is that of its leaders, one after the other.
    ahead_micros: i64,

    // On its disk.
    pub state: State,
    pub applied: usize,
    last_at: Timestamp,
    pub processes: BTreeMap<JobId, Process>,

    // In its memory.
    pub known_leader: Option<usize>,
    pub heard_term: u64,
    pub heard_leader_at: Timestamp,
    pub elect_at: Timestamp,
    pub is_leading: bool,
    pub term: u64,
    pub led_since: Timestamp,
    pub lease_until: Timestamp,
    pub heard: BTreeMap<HostId, Timestamp>,
    pub planner: Planner,
    pub planned_revision: Option<u64>,
    pub wake_at: Option<Timestamp>,
    pub is_proposing: bool,
    beat_at: Timestamp,
}

impl Machine {
    pub fn new(number: usize, skew_micros: i64) -> Machine {
        let never = Timestamp::EPOCH;
        Machine {
            number,
            id: format!("host{number}").parse().expect("a host id"),
            is_on: true,
            boot: 0,
            booted_at: never,
            skew_micros,
            ahead_micros: 0,
            state: State::default(),
            applied: 0,
            last_at: never,
            processes: BTreeMap::new(),
            known_leader: None,
            heard_term: 0,
            heard_leader_at: never,
            elect_at: never,
            is_leading: false,
            term: 0,
            led_since: never,
            lease_until: never,
            heard: BTreeMap::new(),
            planner: Planner::default(),
            planned_revision: None,
            wake_at: None,
            is_proposing: false,
            beat_at: never,
        }
    }

    /// The cluster's time, as it knows it.
    pub fn clock(&self, now: Timestamp) -> Timestamp {
        Timestamp::from_micros(now.as_micros() + self.skew_micros + self.ahead_micros)
    }

    pub fn follow_clock(&mut self, leader: Timestamp, now: Timestamp) {
        self.ahead_micros += leader.as_micros() - self.clock(now).as_micros();
    }

    pub fn row(&self) -> Host {
        Host {
            id: self.id.clone(),
            addr: format!("10.0.0.{}:1113", self.number),
            tags: BTreeMap::new(),
            is_draining: false,
            state: HostState::Up,
            memory_bytes: 16 << 30,
            cpu_milli: 2000,
            gateway: None,
            subnet: None,
            underlay: None,
            public_key: None,
            node: None,
            peer_addr: None,
            public_addresses: vec![],
            version: String::new(),
            created_at: Timestamp::EPOCH,
            started_at: Timestamp::EPOCH,
            up_since: Timestamp::EPOCH,
            relapses: 0,
        }
    }

    pub fn apply(&mut self, index: u64, command: Command) {
        self.last_at = self.last_at.max(command.at);
        let _ = self.state.apply(index, command);
        self.applied = index as usize;
    }

    pub fn start_leading(&mut self, term: u64, now: Timestamp) {
        // Time never runs back behind what is in the rows.
        if self.last_at > self.clock(now) {
            self.follow_clock(self.last_at, now);
        }
        self.is_leading = true;
        self.term = term;
        self.heard_term = term;
        self.known_leader = Some(self.number);
        self.led_since = now;
        self.heard_leader_at = now;
        self.lease_until = now + Duration::from_secs(1);
        self.heard.clear();
        self.planner = Planner::default();
        self.planned_revision = None;
        self.wake_at = None;
        self.is_proposing = false;
    }

    pub fn stop_leading(&mut self) {
        self.is_leading = false;
        self.known_leader = None;
        self.planner = Planner::default();
    }

    pub fn forget_proposal(&mut self, from: &From) {
        if *from == From::Leader {
            self.is_proposing = false;
        }
    }

    /// The controller knows what was reported of a job, or knows nothing of the job.
    pub fn confirmed(&mut self, job: JobId, stage: Stage, is_known: bool) {
        // What it was reported as since is not confirmed with it.
        let process = self.processes.get_mut(&job);
        let Some(process) = process.filter(|process| process.stage == stage) else {
            return;
        };
        process.is_reported = true;
        if process.stage == Stage::Ended {
            self.processes.remove(&job);
        } else if !is_known {
            process.stage = Stage::Ending;
        }
    }

    /// A job that the controller has given up while the host was away may still have its volumes.
    fn are_free(&self, volumes: &[VolumeId]) -> bool {
        !self
            .running()
            .any(|(_, process)| process.volumes.iter().any(|volume| volumes.contains(volume)))
    }

    pub fn running(&self) -> impl Iterator<Item = (&JobId, &Process)> {
        let processes = self.processes.iter();
        processes.filter(|(_, process)| self.is_on && process.stage != Stage::Ended)
    }
}

impl World {
    pub fn switch_off(&mut self, machine: usize) {
        self.tell(format!("host{machine} loses power"));
        let this = &mut self.machines[machine];
        this.is_on = false;
        this.stop_leading();
    }

    pub fn switch_on(&mut self, machine: usize) {
        self.tell(format!("host{machine} has power"));
        let (now, wait) = (self.now, self.random.millis(1200, 1600));
        let this = &mut self.machines[machine];
        this.is_on = true;
        this.boot += 1;
        this.ahead_micros = 0;
        this.booted_at = this.clock(now);
        this.known_leader = None;
        this.heard_term = 0;
        this.elect_at = now + wait;
        this.beat_at = now;
        for process in this
            .processes
            .values_mut()
            .filter(|process| process.stage != Stage::Ended)
        {
            process.stage = Stage::Ended;
            process.exit = Some(Exit::Lost("the host started anew".into()));
            process.is_reported = false;
            process.reported_at = None;
        }
    }

    /// Each says every second that it is there.
    pub fn beat(&mut self, host: usize) {
        if self.machines[host].beat_at > self.now {
            return;
        }
        self.machines[host].beat_at = self.now + BEAT;
        if let Some(leader) = self.leader_of(host)
            && (leader == host || !self.is_lost())
        {
            let (after, boot) = (self.delay(), self.machines[host].booted_at);
            self.later(after, Event::Beat { host, leader, boot });
        }
    }

    /// Makes what runs into what the controller's list says, and reports.
    pub fn look_after_jobs(&mut self, host: usize) {
        // What no leader answers is answered by the machine's own copy.
        let listed = self.leader_of(host).unwrap_or(host);
        let id = self.machines[host].id.clone();
        let jobs = self.machines[listed].state.jobs.values();
        let wanted: BTreeMap<JobId, std::sync::Arc<Job>> = jobs
            .filter(|job| job.host.as_ref() == Some(&id) && job.state != JobState::Down)
            .map(|job| (job.id, job.clone()))
            .collect();
        for job in wanted.values() {
            let is_begun = self.machines[host].processes.contains_key(&job.id);
            match job.state {
                JobState::Stopping if job.is_drained => self.end(host, job.id, Exit::Signal(15)),
                JobState::Stopping => {}
                _ if !is_begun && self.machines[host].are_free(&job.volumes) => self.begin(host, job),
                _ => {}
            }
        }
        let surplus = self.machines[host].running();
        let surplus: Vec<JobId> = surplus
            .map(|(job, _)| *job)
            .filter(|job| !wanted.contains_key(job))
            .collect();
        for job in surplus {
            self.end(host, job, Exit::Signal(15));
        }
        self.report(host);
    }

    fn begin(&mut self, host: usize, job: &Job) {
        self.tell(format!("host{host} begins {}", job.id));
        self.check_begin(host, job);
        let process = Process {
            stage: Stage::Starting,
            exit: None,
            volumes: job.volumes.clone(),
            is_reported: true,
            reported_at: None,
        };
        self.machines[host].processes.insert(job.id, process);
        let (after, boot) = (self.random.millis(50, 1500), self.machines[host].boot);
        self.later(
            after,
            Event::Process {
                machine: host,
                boot,
                job: job.id,
            },
        );
    }

    fn end(&mut self, host: usize, job: JobId, exit: Exit) {
        let boot = self.machines[host].boot;
        match self.machines[host].processes.get_mut(&job) {
            Some(process) if matches!(process.stage, Stage::Starting | Stage::Up) => {
                process.stage = Stage::Ending;
                process.exit = Some(exit);
                self.tell(format!("host{host} ends {job}"));
                let after = self.random.millis(20, 800);
                self.later(
                    after,
                    Event::Process {
                        machine: host,
                        boot,
                        job,
                    },
                );
            }
            Some(_) => {}
            // It was to be stopped before it was begun.
            None => {
                let process = Process {
                    stage: Stage::Ended,
                    exit: Some(Exit::Lost("it was not running".into())),
                    volumes: vec![],
                    is_reported: false,
                    reported_at: None,
                };
                self.machines[host].processes.insert(job, process);
            }
        }
    }

    pub fn process_moves(&mut self, machine: usize, boot: u64, job: JobId) {
        let this = &mut self.machines[machine];
        if this.boot != boot || !this.is_on {
            return;
        }
        let Some(process) = this.processes.get_mut(&job) else {
            return;
        };
        process.stage = match process.stage {
            Stage::Starting => Stage::Up,
            Stage::Ending => Stage::Ended,
            Stage::Up | Stage::Ended => return,
        };
        process.is_reported = false;
        process.reported_at = None;
    }

    fn report(&mut self, host: usize) {
        let now = self.now;
        let due = |process: &Process| {
            !process.is_reported && process.reported_at.is_none_or(|at| at + REPORT_AGAIN <= now)
        };
        let reports: Vec<(JobId, Stage, JobChange)> = self.machines[host]
            .processes
            .iter()
            .filter(|(_, process)| due(process))
            .filter_map(|(job, process)| {
                let change = match process.stage {
                    Stage::Up => JobChange::Up {
                        address: None,
                        ipv6: None,
                    },
                    Stage::Ended => JobChange::Down {
                        exit: process.exit.clone()?,
                    },
                    Stage::Starting | Stage::Ending => return None,
                };
                Some((*job, process.stage, change))
            })
            .collect();
        for (job, stage, change) in reports {
            if let Some(process) = self.machines[host].processes.get_mut(&job) {
                process.reported_at = Some(now);
            }
            self.propose(host, Change::Job { job, change }, From::Host(host, job, stage));
        }
    }
}
