//! Lets time pass for openraft where there is something to decide by it, and no longer.
//!
//! Openraft has a clock of its own that strikes five times between two heartbeats, on every node, mostly to
//! find that nothing is due: on an idle host that was more work than all else. Here one who leads has a timer
//! for heartbeats, and one who follows sleeps for as long as the leader's lease runs:
//!
//! ```text
//! leader     ♥ ──────── ♥ ──────── ✕
//! follower   ├ election_max ┤         looks: it was heard meanwhile, so sleep on
//!                       ├ election_max ┤ looks: nothing was heard; openraft's clock runs
//!                                      ├── by chance ──┤ asks for votes
//! ```
//!
//! What a reader would get wrong: nothing is decided here. When to ask for votes, and whether to, is openraft's as
//! before; its clock runs whenever the leader was silent for as long as its lease, and while nobody leads.

use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::{Instant as _, WatchReceiver};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::consensus::Raft;
use crate::options::Timing;

/// What there is for this node to do as time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// A node that has no vote waits to be spoken to, and one that is alone has nobody to wait for.
    Wait,
    Lead,
    Follow,
}

/// Runs until the store stops. Says who leads, too.
pub(crate) async fn run(raft: Raft, timing: Timing, leader: watch::Sender<Option<u64>>) {
    let mut metrics = raft.server_metrics();
    loop {
        let part = {
            let metrics = metrics.borrow_and_update();
            leader.send_if_modified(|known| {
                std::mem::replace(known, metrics.current_leader) != metrics.current_leader
            });
            let effective = metrics.membership_config.membership();
            let mut nodes = effective.nodes().map(|(id, _)| *id);
            let is_alone = nodes.next() == Some(metrics.id) && nodes.next().is_none();
            // A vote taken away counts until most know it.
            let committed = metrics.committed_membership_config.membership();
            let votes = [effective, committed]
                .iter()
                .any(|membership| membership.voter_ids().any(|id| id == metrics.id));
            match metrics.state {
                _ if is_alone => Part::Wait,
                ServerState::Leader => Part::Lead,
                _ if votes => Part::Follow,
                _ => Part::Wait,
            }
        };
        if part != Part::Follow {
            raft.runtime_config().tick(false);
        }
        let act = async {
            match part {
                Part::Wait => std::future::pending().await,
                Part::Lead => send_heartbeats(&raft, timing.heartbeat).await,
                Part::Follow => watch_for_silence(&raft, &timing).await,
            }
        };
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() { return },
            () = act => return,
        }
    }
}

/// Until the store stops.
async fn send_heartbeats(raft: &Raft, interval: Duration) {
    let mut timer = tokio::time::interval(interval);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        if raft.trigger().heartbeat().await.is_err() {
            return;
        }
    }
}

/// Lets openraft's clock run while the leader is silent. Until the store stops.
async fn watch_for_silence(raft: &Raft, timing: &Timing) {
    loop {
        let lease = raft.with_raft_state(|state| {
            let heard = state.vote_last_modified()?;
            state.vote_ref().is_committed().then(|| heard.elapsed())
        });
        let Ok(silence) = lease.await else {
            return;
        };
        let rest = silence.and_then(|silence| timing.election_max.checked_sub(silence));
        let is_quiet = rest.is_none_or(|rest| rest.is_zero());
        raft.runtime_config().tick(is_quiet);
        // With the clock running openraft sees to the rest; it is looked whether it may stop again.
        let pause = rest.filter(|_| !is_quiet).unwrap_or(timing.heartbeat);
        tokio::time::sleep_until(Instant::now() + pause).await;
    }
}
