//! Time, the network, and what happens next.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use state::{Change, Command, State};
use types::*;

use crate::{
    laws::Laws,
    machine::{Machine, Stage},
    random::Random,
};

/// When every world begins.
pub const BEGIN: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
/// How often machines look around. Everything slower than this is a multiple of it.
pub const STEP: Duration = Duration::from_millis(50);

/// Who asked for a change, and so who is told what came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum From {
    Leader,
    /// A host's report of how far this job is.
    Host(usize, JobId, Stage),
    /// A user's wish, by its number.
    User(u64),
}

#[derive(Debug, Clone)]
pub enum Event {
    /// A leader's proposal comes back from the others, or not.
    Commit {
        leader: usize,
        term: u64,
        command: Box<Command>,
        from: From,
    },
    /// A host is heard by the machine that it takes for the leader.
    Beat {
        host: usize,
        leader: usize,
        boot: Timestamp,
    },
    /// A machine learns what was committed.
    Learn { machine: usize, up_to: usize },
    /// A process has got somewhere.
    Process { machine: usize, boot: u64, job: JobId },
}

pub struct World {
    pub(crate) seed: u64,
    pub(crate) random: Random,
    /// The true time, which nobody knows.
    pub(crate) now: Timestamp,
    pub(crate) machines: Vec<Machine>,
    /// From, to.
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    /// Of a hundred messages.
    pub(crate) loss_percent: u64,
    /// All that was ever committed.
    pub(crate) log: Vec<Command>,
    /// What comes of it, which laws look at.
    pub(crate) truth: State,
    pub(crate) term: u64,
    pub(crate) laws: Laws,
    events: BTreeMap<(Timestamp, u64), Event>,
    serial: u64,
    story: Vec<String>,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.story.len().saturating_sub(120);
            eprintln!(
                "{}\nseed {}: SEED={} runs it again",
                self.story[from..].join("\n"),
                self.seed,
                self.seed
            );
        }
    }
}

impl World {
    /// Machines that are on and know of each other, and nothing that runs on them.
    pub fn new(seed: u64, machines: usize, skew: Duration) -> World {
        let mut random = Random::new(seed);
        let machines = (0..machines)
            .map(|number| {
                let span = skew.as_micros() as u64;
                Machine::new(number, random.below(2 * span + 1) as i64 - span as i64)
            })
            .collect();
        World {
            seed,
            random,
            now: BEGIN,
            machines,
            cuts: BTreeSet::new(),
            loss_percent: 0,
            log: vec![],
            truth: State::default(),
            term: 0,
            laws: Laws::default(),
            events: BTreeMap::new(),
            serial: 0,
            story: vec![],
        }
    }

    pub fn tell(&mut self, line: String) {
        let at = self.now.since(BEGIN).as_millis();
        self.story.push(format!("{at:>8} {line}"));
    }

    pub fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub fn later(&mut self, after: Duration, event: Event) {
        let serial = self.serial();
        self.events.insert((self.now + after, serial), event);
    }

    /// A message's way, once.
    pub fn delay(&mut self) -> Duration {
        self.random.millis(1, 20)
    }

    /// Whether a message would come from one machine to the other.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        self.machines[from].is_on
            && self.machines[to].is_on
            && (from == to || !self.cuts.contains(&(from, to)))
    }

    /// Whether a question would be answered.
    pub fn answers(&self, from: usize, to: usize) -> bool {
        self.reaches(from, to) && self.reaches(to, from)
    }

    /// Whether this one message is lost on a line that works.
    pub fn is_lost(&mut self) -> bool {
        self.loss_percent > 0 && self.random.below(100) < self.loss_percent
    }

    /// Lets time pass.
    pub fn run(&mut self, how_long: Duration) {
        let end = self.now + how_long;
        while self.now < end {
            let next = self.now + STEP;
            while let Some(entry) = self.events.first_entry() {
                if entry.key().0 > next {
                    break;
                }
                let ((at, _), event) = entry.remove_entry();
                self.now = self.now.max(at);
                self.happen(event);
            }
            self.now = next;
            self.elect();
            for machine in 0..self.machines.len() {
                if self.machines[machine].is_on {
                    self.follow(machine);
                    self.beat(machine);
                    self.look_after_jobs(machine);
                    self.lead(machine);
                }
            }
            self.check_always();
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Commit {
                leader,
                term,
                command,
                from,
            } => self.commit(leader, term, *command, from),
            Event::Beat { host, leader, boot } => self.hear(host, leader, boot),
            Event::Learn { machine, up_to } => {
                // Entries are a leader's word as much as a heartbeat is.
                self.machines[machine].heard_leader_at = self.now;
                self.learn(machine, up_to);
            }
            Event::Process { machine, boot, job } => self.process_moves(machine, boot, job),
        }
    }

    /// What somebody asks of the machine that `asked` takes for the leader. Nothing is known of it until
    /// [`Event::Commit`] comes to pass.
    pub fn propose(&mut self, asked: usize, change: Change, from: From) -> bool {
        let Some(leader) = self.leader_of(asked) else {
            return false;
        };
        // Between a leader and its followers the store makes losses good.
        if from != From::Leader && self.is_lost() {
            return false;
        }
        let command = Command {
            at: self.clock_of(leader),
            change,
        };
        let after = self.delay() + self.delay();
        let term = self.machines[leader].term;
        self.later(
            after,
            Event::Commit {
                leader,
                term,
                command: Box::new(command),
                from,
            },
        );
        true
    }

    /// What a machine's clock shows.
    pub fn clock_of(&self, machine: usize) -> Timestamp {
        self.machines[machine].clock(self.now)
    }
}
