//! Members of the cluster: who they are, who votes, who may join and who has to go.

use std::{net::SocketAddr, time::Duration};

use api::{
    Error,
    peers::{
        Announcement, ClusterView, FloatingView, JoinRequest, Joined, MemberView, NewToken, TokenView,
        VoteChange,
    },
};
use axum::{
    Json,
    extract::{Path, State as Extract},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use state::{Change, MembershipChange};
use types::{HostState, JoinToken, Member, Vote};

use super::{
    Shared,
    body::{Body, Ignored, Parameters},
    error::Failure,
    parse_id,
};
use crate::{Controller, authority, domain, membership::candidates};

/// A token for longer than this would lie around.
const TTL_S_MAX: u64 = 7 * 24 * 3600;
/// Clocks that differ by more are told of in the log.
const SKEW_TOLD: Duration = Duration::from_secs(60);

pub async fn show(Extract(controller): Shared) -> Json<ClusterView> {
    let state = controller.state();
    let status = controller.store.status();
    let members = state.members.values().map(|member| MemberView {
        is_voter: status.voters.iter().any(|peer| peer.id == member.node),
        is_follower: status.learners.iter().any(|peer| peer.id == member.node),
        host: state.hosts.get(&member.host).map(|host| (**host).clone()),
        member: (**member).clone(),
    });
    Json(ClusterView {
        node: status.node_id,
        leader: status.leader.as_ref().map(|leader| leader.id),
        term: status.term,
        last_index: status.last_log_index,
        applied_index: status.applied_index,
        members: members.collect(),
        floating: floating(&controller),
        authority: authority::view(&controller),
    })
}

/// As this host has them: the one that leads is asked.
fn floating(controller: &Controller) -> Vec<FloatingView> {
    let own = controller.config.membership.as_ref();
    own.map(|own| own.floating.borrow().clone()).unwrap_or_default()
}

pub async fn create_token(
    Extract(controller): Shared,
    Body(new): Body<NewToken>,
) -> Result<Json<TokenView>, Failure> {
    if !(1..=TTL_S_MAX).contains(&new.ttl_s) {
        let reason = format!("must be from 1 to {TTL_S_MAX}, which is a week");
        return Err(Error::validation("ttl_s", reason).into());
    }
    let own = controller.config.membership.as_ref();
    if own.is_none_or(|own| own.address.borrow().is_empty()) {
        let error = Error::conflict("this host has no port for other hosts");
        return Err(error
            .with_hint("set `cluster = \"0.0.0.0:1115\"` in host.toml")
            .into());
    }
    let secret = daemon::secrets::random_key();
    let now = controller.now();
    let token = JoinToken {
        hash: hash(&secret),
        created_at: now,
        expires_at: now + Duration::from_secs(new.ttl_s),
        used: None,
    };
    let expires_at = token.expires_at;
    let change = MembershipChange::CreateToken { token };
    controller.write(Change::Membership { change }).await?;
    Ok(Json(TokenView {
        token: secret,
        expires_at,
    }))
}

pub async fn join(
    Extract(controller): Shared,
    Body(request): Body<JoinRequest>,
) -> Result<Json<Joined>, Failure> {
    let own = controller
        .config
        .membership
        .as_ref()
        .ok_or_else(|| Error::conflict("this cluster takes no other hosts in"))?;
    check_address(&request.addr, &own.address.borrow())?;
    let now = controller.now();
    let skew = now.since(request.at).max(request.at.since(now));
    if skew > SKEW_TOLD {
        tracing::warn!(host = %request.host, skew_s = skew.as_secs(), "the clock of a joining host differs");
    }
    let change = MembershipChange::Join {
        token_hash: hash(&request.secret),
        host: request.host.clone(),
        joiner: request.joiner,
        addr: request.addr,
        network: own.network.clone(),
        prefix: own.prefix,
    };
    controller.write(Change::Membership { change }).await?;
    let state = controller.state();
    let member = state.member_of(&request.host).ok_or_else(Error::not_found)?;
    tracing::info!(host = %member.host, addr = member.addr, subnet = member.subnet, "a host may join");
    Ok(Json(Joined {
        member: Member::clone(member),
        members: state
            .members
            .values()
            .map(|member| Member::clone(member))
            .collect(),
        domain: domain::current(&state, &controller.config).name,
        floating: floating(&controller)
            .into_iter()
            .map(|view| view.address)
            .collect(),
        at: now,
    }))
}

/// What can be told to be wrong without asking anybody there: the host does not run yet.
fn check_address(addr: &str, own: &str) -> Result<(), Error> {
    let is_place = addr
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    if !is_place {
        return Err(Error::validation("address", format!("{addr:?} is not HOST:PORT")));
    }
    let is_loopback = |addr: &str| addr.parse().is_ok_and(|addr: SocketAddr| addr.ip().is_loopback());
    let is_unspecified = addr
        .parse()
        .is_ok_and(|addr: SocketAddr| addr.ip().is_unspecified());
    if is_unspecified || is_loopback(addr) && !is_loopback(own) {
        let error = Error::validation(
            "address",
            format!("{addr} is no address that other hosts can reach"),
        );
        return Err(error.with_hint("set `address` in host.toml, or give --address"));
    }
    Ok(())
}

/// A member says where it is.
pub async fn announce(
    Extract(controller): Shared,
    Path(node): Path<String>,
    Body(announcement): Body<Announcement>,
) -> Result<(), Failure> {
    let node: u64 = parse_id(&node)?;
    let state = controller.state();
    let member = state.members.get(&node).ok_or_else(Error::not_found)?;
    if member.addr != announcement.addr {
        tracing::info!(host = %member.host, from = member.addr, to = announcement.addr, "a host has moved");
        let addr = announcement.addr;
        let change = MembershipChange::Move { node, addr };
        controller.write(Change::Membership { change }).await?;
    }
    controller.announced.note(node);
    Ok(())
}

pub async fn vote(
    Extract(controller): Shared,
    Path(host): Path<String>,
    Body(new): Body<VoteChange>,
) -> Result<Json<Member>, Failure> {
    let member = find(&controller, &host)?;
    check_votes(&controller, &member, "demoting", |other| {
        Some(if other.node == member.node {
            new.vote
        } else {
            other.vote
        })
    })?;
    let change = MembershipChange::SetVote {
        node: member.node,
        vote: new.vote,
    };
    controller.write(Change::Membership { change }).await?;
    Ok(Json(find(&controller, &host)?))
}

#[derive(Deserialize)]
pub struct Removal {
    #[serde(default)]
    force: bool,
}

pub async fn remove(
    Extract(controller): Shared,
    Path(host): Path<String>,
    Parameters(removal): Parameters<Removal>,
    _: Ignored,
) -> Result<Json<Member>, Failure> {
    let member = find(&controller, &host)?;
    let state = controller.state();
    let is_up = state
        .hosts
        .get(&member.host)
        .is_some_and(|host| host.state == HostState::Up);
    if is_up && !removal.force {
        let error = Error::conflict(format!("host {host} is up, and its jobs would be stopped"));
        return Err(error
            .with_hint("stop its daemon first, or give --force: its jobs are started on other hosts then")
            .into());
    }
    check_votes(&controller, &member, "removing", |other| {
        (other.node != member.node).then_some(other.vote)
    })?;
    tracing::info!(host = %member.host, "a host is removed");
    let change = MembershipChange::Remove { node: member.node };
    controller.write(Change::Membership { change }).await?;
    Ok(Json(member))
}

/// Refuses what would leave a group in which nothing could be agreed on any more.
fn check_votes(
    controller: &Controller,
    member: &Member,
    doing: &str,
    wish: impl Fn(&Member) -> Option<Vote>,
) -> Result<(), Error> {
    let (state, status) = (controller.state(), controller.store.status());
    let mut after = candidates(controller, &state, &status, |member| {
        wish(member).unwrap_or_default()
    });
    after.retain(|voter| {
        let row = state.members.get(&voter.node);
        row.is_some_and(|row| wish(row).is_some())
    });
    let host = &member.host;
    let voters = state::voters(&after);
    if voters.is_empty()
        || voters.iter().all(|node| *node == member.node) && wish(member) != Some(Vote::Promoted)
    {
        if wish(member) == Some(Vote::Auto) {
            return Ok(());
        }
        let error = Error::conflict(format!(
            "{doing} host {host} would leave nobody to vote on the cluster's state"
        ));
        return Err(error.with_hint("let another host join first; who is up and follows can vote"));
    }
    let answers = |node: &u64| {
        let is_leader = status.leader.as_ref().is_some_and(|leader| leader.id == *node);
        let row = state
            .members
            .get(node)
            .and_then(|member| state.hosts.get(&member.host));
        is_leader || row.is_some_and(|host| host.state == HostState::Up)
    };
    let present = voters.iter().filter(|node| answers(node)).count();
    if present * 2 <= voters.len() {
        let message = format!(
            "{doing} host {host} would leave {} hosts to vote, of which only {present} can be reached",
            voters.len()
        );
        let hint = "bring the others back first, or remove those that are gone for good";
        return Err(Error::conflict(message).with_hint(hint));
    }
    Ok(())
}

fn find(controller: &Controller, host: &str) -> Result<Member, Error> {
    let state = controller.state();
    let found = host.parse().ok().and_then(|host| state.member_of(&host).cloned());
    let unknown = || {
        Error::new(
            api::Code::ObjectNotFound,
            format!("the cluster has no host {host}"),
        )
        .with_hint("`flynn-host list` lists its hosts")
    };
    Ok(Member::clone(&*found.ok_or_else(unknown)?))
}

/// What is kept of a token: who has read the state can still not join.
fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret))
}
