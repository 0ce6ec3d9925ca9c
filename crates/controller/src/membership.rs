//! On the leader: makes the group that votes on the cluster's state be what the rows of members say.
//!
//! Level-triggered: each round compares and does one step. A host whose row is there follows when it
//! has said where it is; one whose row is gone neither votes nor follows; who votes is decided by
//! [`state::voters`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use api::peers::FloatingView;
use daemon::Shutdown;
use state::{Change, MembershipChange, State, Voter};
use tokio::sync::watch;
use types::{HostId, HostState, Member, Vote};

use crate::Controller;

const ROUND: Duration = Duration::from_millis(500);
/// A host that was silent for so long gives its vote to another, where there is one.
const LOST_AFTER: Duration = Duration::from_secs(300);
/// A follower may lack so many entries and still be as good as up to date.
const LAG_MAX: u64 = 1_000;

/// This host as a member.
#[derive(Clone)]
pub struct Membership {
    pub node: u64,
    pub host: HostId,
    /// `IP:PORT` of the port for other hosts; empty where there is none.
    pub address: watch::Receiver<String>,
    pub subnet: String,
    /// What the subnets of joining hosts are cut from, and their size.
    pub network: String,
    pub prefix: u8,
    /// Addresses that one host has at a time, and whether this one has them.
    pub floating: watch::Receiver<Vec<FloatingView>>,
}

pub async fn run(controller: Controller, shutdown: Shutdown) {
    let Some(own) = controller.config.membership.clone() else {
        return;
    };
    let mut leadership = controller.store.leadership();
    let mut last_error = String::new();
    loop {
        let leads = *leadership.borrow_and_update();
        if leads {
            let error = match round(&controller, &own).await {
                Ok(()) => String::new(),
                Err(error) => error.to_string(),
            };
            // Once, and not every half second.
            if !error.is_empty() && error != last_error {
                tracing::warn!(error, "the group of voters is not as it should be; trying again");
            }
            last_error = error;
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            _ = tokio::time::sleep(ROUND), if leads => {}
            _ = shutdown.cancelled() => return,
        }
    }
}

async fn round(controller: &Controller, own: &Membership) -> anyhow::Result<()> {
    let store = &controller.store;
    let state = controller.state();
    let addr = own.address.borrow().clone();
    let membership = |change| Change::Membership { change };
    match state.members.get(&own.node) {
        None => {
            let found = MembershipChange::Found {
                node: own.node,
                host: own.host.clone(),
                addr,
                subnet: own.subnet.clone(),
            };
            controller.write(membership(found)).await?;
            return Ok(());
        }
        Some(row) if row.addr != addr => {
            tracing::info!(from = row.addr, to = addr, "this host's address has changed");
            let moved = MembershipChange::Move { node: own.node, addr };
            controller.write(membership(moved)).await?;
            return Ok(());
        }
        Some(_) => {}
    }
    let status = store.status();
    let nodes: BTreeMap<u64, String> = status
        .voters
        .iter()
        .chain(&status.learners)
        .map(|peer| (peer.id, peer.address.clone()))
        .collect();
    for member in state.members.values() {
        let is_new = !nodes.contains_key(&member.node);
        let has_moved = nodes.get(&member.node).is_some_and(|addr| *addr != member.addr);
        if has_moved || is_new && controller.announced.has(member.node) {
            tracing::info!(host = %member.host, addr = member.addr, "the host follows the cluster's state");
            let peer = store::Peer {
                id: member.node,
                address: member.addr.clone(),
            };
            return Ok(store.put_follower(peer).await?);
        }
    }
    let voting: BTreeSet<u64> = status.voters.iter().map(|peer| peer.id).collect();
    let should = voters(controller, &state, &status);
    if should != voting {
        return set_voters(controller, own.node, &voting, should).await;
    }
    let gone: BTreeSet<u64> = nodes
        .keys()
        .copied()
        .filter(|node| !state.members.contains_key(node))
        .collect();
    if !gone.is_empty() {
        tracing::info!(nodes = ?gone, "removed from the group");
        store.remove_followers(gone).await?;
    }
    Ok(())
}

/// Who should vote as things are.
fn voters(controller: &Controller, state: &State, status: &store::Status) -> BTreeSet<u64> {
    state::voters(&candidates(controller, state, status, |member| member.vote))
}

pub(crate) fn candidates(
    controller: &Controller,
    state: &State,
    status: &store::Status,
    wish: impl Fn(&Member) -> Vote,
) -> Vec<Voter> {
    let leader = status.leader.as_ref().map(|leader| leader.id);
    let last = status.last_log_index.unwrap_or(0);
    let votes_now = |node| status.voters.iter().any(|peer| peer.id == node);
    let now = controller.now();
    let members = state.members.values().map(|member| {
        let host = state.hosts.get(&member.host);
        let is_up = host.is_some_and(|host| host.state == HostState::Up);
        let has_log = status
            .matched
            .get(&member.node)
            .is_some_and(|matched| matched + LAG_MAX >= last);
        let leads = leader == Some(member.node);
        Voter {
            node: member.node,
            wish: wish(member),
            votes_now: votes_now(member.node),
            leads,
            is_ready: leads || is_up && has_log,
            is_lost: host.is_some_and(|host| match host.state {
                HostState::Silent { since } => now.since(since) > LOST_AFTER,
                HostState::Up => false,
            }),
        }
    });
    members.collect()
}

async fn set_voters(
    controller: &Controller,
    own: u64,
    voting: &BTreeSet<u64>,
    should: BTreeSet<u64>,
) -> anyhow::Result<()> {
    let store = &controller.store;
    // Whoever leads cannot take its own vote: it hands the lead over, and the next one does.
    let mut next = should.clone();
    next.insert(own);
    if next != *voting {
        tracing::info!(from = ?voting, to = ?next, "who votes on the cluster's state changes");
        return Ok(store.set_voters(next).await?);
    }
    if !should.contains(&own) {
        tracing::info!("handing the lead over, as this host is not to vote any more");
        store.hand_over().await;
    }
    Ok(())
}

/// Members that said where they are since this host began to lead, or before: they run.
#[derive(Default)]
pub struct Announced(std::sync::Mutex<BTreeSet<u64>>);

impl Announced {
    pub fn note(&self, node: u64) {
        self.0.lock().expect("no panic while held").insert(node);
    }

    fn has(&self, node: u64) -> bool {
        self.0.lock().expect("no panic while held").contains(&node)
    }
}
