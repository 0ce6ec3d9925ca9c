//! Who leads and what is committed, as Raft would have it; that it does is assumed.

use std::time::Duration;

use state::{Command, Outcome};

use crate::world::{Event, From, World};

/// The store's: a follower waits this long after the last sign of a leader, at least and at most.
const ELECTION_MIN_MS: u64 = 1200;
const ELECTION_MAX_MS: u64 = 1600;
/// A leader that no majority has answered for so long gives up, and its followers take others' side.
const LEASE: Duration = Duration::from_millis(800);

impl World {
    pub fn majority_answers(&self, machine: usize) -> bool {
        let answering = (0..self.machines.len()).filter(|other| self.answers(machine, *other));
        self.machines[machine].is_on && answering.count() * 2 > self.machines.len()
    }

    /// The machine that leads the newest term, if it can still do anything.
    pub fn true_leader(&self) -> Option<usize> {
        (0..self.machines.len()).find(|machine| {
            let this = &self.machines[*machine];
            this.is_leading && this.term == self.term && self.majority_answers(*machine)
        })
    }

    /// Whom a machine's requests go to: the leader that it last heard, if that still answers.
    pub fn leader_of(&self, machine: usize) -> Option<usize> {
        let leader = self.machines[machine].known_leader?;
        (self.answers(machine, leader) && self.machines[leader].is_leading).then_some(leader)
    }

    pub fn elect(&mut self) {
        for leader in 0..self.machines.len() {
            if !self.machines[leader].is_leading {
                continue;
            }
            if self.majority_answers(leader) && self.machines[leader].term == self.term {
                self.machines[leader].lease_until = self.now + LEASE;
            } else if self.machines[leader].lease_until < self.now {
                self.tell(format!("host{leader} gives up the lead"));
                self.machines[leader].stop_leading();
                continue;
            }
            for follower in 0..self.machines.len() {
                let term = self.machines[leader].term;
                if self.reaches(leader, follower)
                    && term >= self.machines[follower].heard_term
                    && (follower == leader || !self.is_lost())
                {
                    let wait = self.random.millis(ELECTION_MIN_MS, ELECTION_MAX_MS);
                    let (time, now) = (self.clock_of(leader), self.now);
                    self.machines[follower].follow_clock(time, now);
                    let machine = &mut self.machines[follower];
                    machine.known_leader = Some(leader);
                    machine.heard_term = term;
                    machine.heard_leader_at = self.now;
                    machine.elect_at = self.now + wait;
                }
            }
        }
        for candidate in 0..self.machines.len() {
            if self.machines[candidate].is_on
                && !self.machines[candidate].is_leading
                && self.machines[candidate].elect_at <= self.now
                && self.is_electable(candidate)
            {
                self.take_the_lead(candidate);
            }
        }
    }

    /// Voters that have heard a leader of late vote for nobody.
    fn is_electable(&self, candidate: usize) -> bool {
        let votes = (0..self.machines.len()).filter(|voter| {
            let is_free = self.machines[*voter].heard_leader_at + LEASE <= self.now;
            self.answers(candidate, *voter) && is_free
        });
        votes.count() * 2 > self.machines.len()
    }

    fn take_the_lead(&mut self, machine: usize) {
        self.term += 1;
        self.tell(format!("host{machine} leads term {}", self.term));
        // Whoever is elected has all that was committed.
        self.learn(machine, self.log.len());
        let (term, now) = (self.term, self.now);
        self.machines[machine].start_leading(term, now);
    }

    pub fn commit(&mut self, leader: usize, term: u64, command: Command, from: From) {
        let this = &self.machines[leader];
        let is_in_lead = this.is_leading && this.term == term && term == self.term;
        if !is_in_lead || !self.majority_answers(leader) {
            self.machines[leader].forget_proposal(&from);
            return;
        }
        self.note_command(&command);
        let outcome = self.truth.apply(self.log.len() as u64 + 1, command.clone());
        self.log.push(command);
        let up_to = self.log.len();
        self.learn(leader, up_to);
        self.machines[leader].forget_proposal(&from);
        for follower in 0..self.machines.len() {
            self.send_log(leader, follower);
        }
        self.answer(leader, from, outcome);
    }

    /// A follower that lags is sent what it lacks, again and again.
    pub fn follow(&mut self, machine: usize) {
        if let Some(leader) = self.true_leader()
            && self.machines[machine].applied < self.log.len()
        {
            self.send_log(leader, machine);
        }
    }

    fn send_log(&mut self, leader: usize, follower: usize) {
        if follower != leader && self.answers(leader, follower) && !self.is_lost() {
            let (after, up_to) = (self.delay(), self.log.len());
            self.later(
                after,
                Event::Learn {
                    machine: follower,
                    up_to,
                },
            );
        }
    }

    pub fn learn(&mut self, machine: usize, up_to: usize) {
        if !self.machines[machine].is_on {
            return;
        }
        let from = self.machines[machine].applied;
        for index in from..up_to {
            let command = self.log[index].clone();
            self.machines[machine].apply(index as u64 + 1, command);
        }
    }

    /// What came of a proposal reaches who asked for it, unless the answer is lost.
    fn answer(&mut self, leader: usize, from: From, outcome: Outcome) {
        match from {
            From::Leader => {}
            From::Host(host, job, stage) => {
                if self.answers(leader, host) && !self.is_lost() {
                    self.machines[host].confirmed(job, stage, outcome.is_ok());
                }
            }
            From::User(wish) => {
                if !self.is_lost() && outcome.is_ok() {
                    self.laws.acknowledge(wish);
                }
            }
        }
    }
}
