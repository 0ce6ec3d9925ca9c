//! What a controller does while it leads, or thinks that it does: hears hosts, drains jobs, plans.

use std::time::Duration;

use state::{Change, JobChange};
use types::*;

use crate::world::{From, World};

/// The controller's: after this long without a word a host is out of rotation.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// The controller's: how long hosts may take to find a new leader, beyond that.
const FIRST_WORD_MAX: Duration = Duration::from_secs(2);

impl World {
    /// A host's word that it is there, as the controller takes it.
    pub fn hear(&mut self, host: usize, leader: usize, boot: Timestamp) {
        if !self.machines[leader].is_leading {
            return;
        }
        let now = self.clock_of(leader);
        let id = self.machines[host].id.clone();
        if self.true_leader() == Some(leader) {
            self.laws.contact(host, self.now);
        }
        let machine = &mut self.machines[leader];
        machine.heard.insert(id.clone(), self.now);
        let known = machine.state.hosts.get(&id).cloned();
        let row = Host {
            created_at: known.as_ref().map_or(now, |known| known.created_at),
            is_draining: known.as_ref().is_some_and(|known| known.is_draining),
            started_at: boot,
            up_since: known.as_ref().map_or(Timestamp::EPOCH, |known| known.up_since),
            relapses: known.as_ref().map_or(0, |known| known.relapses),
            ..self.machines[host].row()
        };
        if known.is_none_or(|known| *known != row) {
            self.propose(leader, Change::PutHost { host: row }, From::Leader);
        }
    }

    pub fn lead(&mut self, leader: usize) {
        if !self.machines[leader].is_leading || self.machines[leader].is_proposing {
            return;
        }
        let now = self.clock_of(leader);
        if let Some((host, silence)) = self.silent_host(leader) {
            let state = HostState::Silent { since: now - silence };
            return self.propose_as_leader(leader, Change::SetHostState { host, state });
        }
        let machine = &mut self.machines[leader];
        let drained = machine.state.jobs.values().filter(|job| {
            job.state == JobState::Stopping
                && !job.is_drained
                && now.since(job.updated_at) >= Duration::from_millis(300)
        });
        let drained: Vec<Change> = drained
            .map(|job| Change::Job {
                job: job.id,
                change: JobChange::Drained,
            })
            .collect();
        if !drained.is_empty() {
            return self.propose_as_leader(leader, Change::All { changes: drained });
        }
        let machine = &mut self.machines[leader];
        let is_due = machine.wake_at.is_some_and(|at| at <= now);
        if machine.planned_revision == Some(machine.state.revision) && !is_due {
            return;
        }
        let plan = machine
            .planner
            .plan(&controller::planner::cluster(&machine.state), now);
        machine.planned_revision = Some(machine.state.revision);
        machine.wake_at = plan.wake_at;
        if !plan.is_empty() {
            for line in plan.to_string().lines() {
                self.tell(format!("host{leader} plans: {line}"));
            }
            // Until it is written the plan stands to be made again.
            self.machines[leader].planned_revision = None;
            let changes = plan
                .actions
                .into_iter()
                .map(controller::planner::change)
                .collect();
            self.propose_as_leader(leader, Change::All { changes });
        }
    }

    /// A new leader gives every host as long as if it had just been heard.
    fn silent_host(&self, leader: usize) -> Option<(HostId, Duration)> {
        let machine = &self.machines[leader];
        if self.now.since(machine.led_since) < SILENCE_MAX + FIRST_WORD_MAX {
            return None;
        }
        let up = machine
            .state
            .hosts
            .values()
            .filter(|host| host.state == HostState::Up);
        let mut silent = up.map(|host| {
            let heard = machine.heard.get(&host.id).copied().unwrap_or(machine.led_since);
            (host.id.clone(), self.now.since(heard))
        });
        silent.find(|(_, silence)| *silence > SILENCE_MAX)
    }

    fn propose_as_leader(&mut self, leader: usize, change: Change) {
        self.machines[leader].is_proposing = true;
        if !self.propose(leader, change, From::Leader) {
            self.machines[leader].is_proposing = false;
        }
    }
}
