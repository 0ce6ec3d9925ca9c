//! Founding a cluster, joining it, and who votes in it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::{
    ClientError, Controller, Error,
    peers::{AuthorityView, ClusterView, MemberView, NewToken, TokenView, VoteChange},
};
use daemon::{Secrets, files};
use peers::{Membership, Token};
use types::{HostState, Member, Timestamp, Vote};

use crate::{
    address,
    config::Config,
    format::{ago, table},
    host_client,
};

/// How long a change of voters may take until it is done.
const VOTERS_MAX: Duration = Duration::from_secs(20);

/// The port of a cluster's hosts where none is given.
const PORT: u16 = 1115;

pub fn init(config: &Config, address: Option<&str>, floating: Vec<String>) -> Result<()> {
    config.check_floating(&floating)?;
    let state = config.state();
    if let Some(membership) = Membership::read(&state)? {
        bail!(
            "this host is a member of the cluster {} already\nhint: `flynn-host list` lists its hosts",
            membership.domain
        );
    }
    let has_state = std::fs::read_dir(state.raft()).is_ok_and(|mut entries| entries.next().is_some());
    files::create_private_dir(state.root())?;
    Secrets::open(&state.secrets(), &config.domain)?;
    let membership = Membership {
        node: 1,
        host: config.host_id()?,
        address: address.map(|address| address::with_port(address, config.cluster.port())),
        subnet: config.network.subnet.clone(),
        domain: config.domain.clone(),
        floating,
        peers: Default::default(),
    };
    membership.write(&state)?;
    let own = address::own(config, Some(&membership));
    println!(
        "Founded the cluster {} on host {}, which others reach at {own}.",
        config.domain, membership.host
    );
    if has_state {
        println!("Its apps stay. Start the daemon anew once, so that their network reaches other hosts.");
        return Ok(());
    }
    println!("Start the daemon, then run `flynn-host token` for each host that is to join.");
    Ok(())
}

pub async fn token(config: &Config, ttl: &str) -> Result<()> {
    let membership = Membership::read(&config.state())?;
    if membership.is_none() {
        bail!(
            "this host does not know by which address others reach it\nhint: run `flynn-host init`, start its daemon \
             anew, and then make a token"
        );
    }
    let new = NewToken {
        ttl_s: seconds(ttl).with_context(|| {
            format!(
                "{ttl:?} is no length of time\nhint: give a number with s, m, h or d behind it, such as 30m"
            )
        })?,
    };
    let controller = host_client::controller(config)?;
    let made: TokenView = controller
        .client()
        .post("/internal/cluster/tokens", &new)
        .await
        .map_err(told)?;
    let ca_cert = files::read_if_exists(&config.state().secrets().join("ca.pem"))?;
    let token = Token::new(
        &ca_cert.context("the cluster's authority is missing")?,
        &made.token,
    )?;
    let own = address::own(config, membership.as_ref());
    println!("{token}");
    eprintln!(
        "\nFor one host, until {}. There, before its daemon is started:\n  flynn-host join {own} --token {token}",
        made.expires_at
    );
    Ok(())
}

fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

pub async fn join(
    config: &Config,
    cluster: &str,
    token: &str,
    address: Option<&str>,
    floating: &[String],
) -> Result<()> {
    config.check_floating(floating)?;
    let token: Token = token.parse()?;
    let state = config.state();
    let address = match address {
        Some(address) => Some(address),
        None => Some(config.address.as_str()).filter(|address| !address.is_empty()),
    };
    let address = address.map(|address| address::with_port(address, config.cluster.port()));
    let membership = peers::join(peers::Join {
        cluster: &address::with_port(cluster, PORT),
        token: &token,
        host: config.host_id()?,
        address: address.as_deref(),
        port: config.cluster.port(),
        floating,
        state: &state,
    })
    .await?;
    println!(
        "Joined the cluster {} as host {}, with {} for its jobs.",
        membership.domain, membership.host, membership.subnet
    );
    println!("Start the daemon; `flynn-host list` then lists all hosts.");
    Ok(())
}

pub async fn promote(config: &Config, host: &str) -> Result<()> {
    set_vote(config, host, Vote::Promoted).await?;
    println!("{host} votes on the cluster's state.");
    Ok(())
}

pub async fn demote(config: &Config, host: &str) -> Result<()> {
    set_vote(config, host, Vote::Demoted).await?;
    println!("{host} follows the cluster's state without a vote.");
    Ok(())
}

async fn set_vote(config: &Config, host: &str, vote: Vote) -> Result<()> {
    let controller = host_client::controller(config)?;
    let path = format!("/internal/cluster/members/{}/vote", api::client::escape(host));
    let member: Member = controller
        .client()
        .put(&path, &VoteChange { vote })
        .await
        .map_err(told)?;
    let votes = vote == Vote::Promoted;
    let wait = async {
        loop {
            let cluster: Result<ClusterView, _> = controller.client().get("/internal/cluster").await;
            let is_done = cluster.is_ok_and(|cluster| {
                let row = cluster.members.iter().find(|row| row.member.node == member.node);
                row.is_some_and(|row| row.is_voter == votes)
            });
            if is_done {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    if tokio::time::timeout(VOTERS_MAX, wait).await.is_err() {
        bail!(
            "it is noted, but not so yet after {} s\nhint: `flynn-host status` shows whether the host is up and follows",
            VOTERS_MAX.as_secs()
        );
    }
    Ok(())
}

pub async fn remove(config: &Config, host: &str, force: bool) -> Result<()> {
    let controller = host_client::controller(config)?;
    let path = format!(
        "/internal/cluster/members/{}?force={force}",
        api::client::escape(host)
    );
    controller
        .client()
        .delete_json::<Member>(&path)
        .await
        .map_err(told)?;
    println!(
        "{host} is not a member any more. If it comes back: `flynn-host teardown --remove-state` there, then join again."
    );
    Ok(())
}

pub async fn status(config: &Config, json: bool) -> Result<()> {
    let controller = host_client::controller(config)?;
    let cluster = view(&controller).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&cluster)?);
        return Ok(());
    }
    print!("{}", report(&cluster, daemon::now()));
    Ok(())
}

pub async fn view(controller: &Controller) -> Result<ClusterView> {
    controller.client().get("/internal/cluster").await.map_err(told)
}

/// What `flynn-host list` prints, in the original's words; a cluster with floating addresses has a column more.
pub fn list(cluster: &ClusterView, now: Timestamp) -> Vec<Vec<String>> {
    let mut rows = vec![vec!["ID".to_owned(), "ADDR".into(), "RAFT STATUS".into()]];
    if !cluster.floating.is_empty() {
        rows[0].push("FLOATING".into());
    }
    for row in &cluster.members {
        let mut raft = match (cluster.leader == Some(row.member.node), row.is_voter) {
            (true, _) => "peer (leader)".to_owned(),
            (false, true) => "peer".to_owned(),
            (false, false) => "proxy".to_owned(),
        };
        if let Some(what) = absence(row, now) {
            raft.push_str(&format!(", {what}"));
        }
        let mut cells = vec![row.member.host.to_string(), host_addr(row), raft];
        let held = cluster
            .floating
            .iter()
            .filter(|floating| floating.holder.as_ref() == Some(&row.member.host));
        let held: Vec<_> = held.map(|floating| floating.address.as_str()).collect();
        if !held.is_empty() {
            cells.push(held.join(" "));
        }
        rows.push(cells);
    }
    rows
}

/// Where its host API is, by the address that others have for it now.
fn host_addr(row: &MemberView) -> String {
    let ip = row.member.addr.rsplit_once(':').map_or("", |(ip, _)| ip);
    let port = row
        .host
        .as_ref()
        .and_then(|host| host.addr.rsplit_once(':'))
        .map_or("1113", |(_, port)| port);
    format!("{ip}:{port}")
}

fn absence(row: &MemberView, now: Timestamp) -> Option<String> {
    match row.host.as_ref().map(|host| host.state) {
        Some(HostState::Up) => None,
        Some(HostState::Silent { since }) => Some(format!("silent since {}", ago(since, now))),
        None => Some("not started yet".to_owned()),
    }
}

/// What `flynn-host status` prints.
pub fn report(cluster: &ClusterView, now: Timestamp) -> String {
    let leader = cluster
        .members
        .iter()
        .find(|row| cluster.leader == Some(row.member.node));
    let voters: Vec<_> = cluster.members.iter().filter(|row| row.is_voter).collect();
    let present = voters.iter().filter(|row| absence(row, now).is_none()).count();
    let mut text = match leader {
        Some(leader) => format!("{} leads, ", leader.member.host),
        None => "nobody leads: nothing can be changed until most voters are back, ".to_owned(),
    };
    text.push_str(&format!(
        "{present} of {} voters are up, term {}, {} entries\n\n",
        voters.len(),
        cluster.term,
        cluster.last_index.map_or(0, |index| index + 1)
    ));
    let head = ["ID", "NODE", "PEER ADDR", "SUBNET", "VOTES", "STATE", "VERSION"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for row in &cluster.members {
        let votes = match (row.is_voter, row.member.vote) {
            (true, Vote::Promoted) => "yes (promoted)",
            (true, _) => "yes",
            (false, Vote::Demoted) => "no (demoted)",
            (false, Vote::Promoted) => "soon (promoted)",
            (false, Vote::Auto) => "no",
        };
        rows.push(vec![
            row.member.host.to_string(),
            row.member.node.to_string(),
            row.member.addr.clone(),
            row.member.subnet.clone(),
            votes.to_owned(),
            absence(row, now).unwrap_or_else(|| "up".into()),
            row.host
                .as_ref()
                .map_or_else(String::new, |host| host.version.clone()),
        ]);
    }
    text.push_str(&table(&rows));
    for floating in &cluster.floating {
        let holder = match &floating.holder {
            Some(host) => format!("is held by {host}"),
            None => "is held by nobody just now".to_owned(),
        };
        text.push_str(&format!("\nfloating address {} {holder}\n", floating.address));
    }
    if let Some(authority) = &cluster.authority {
        text.push_str(&certificates(authority, now));
    }
    text
}

/// Nothing while there is nothing to do.
fn certificates(authority: &AuthorityView, now: Timestamp) -> String {
    if now < authority.renewal_at {
        return String::new();
    }
    let domains = authority.domains_end_at.unwrap_or(authority.ends_at);
    let end = domains.min(authority.ends_at);
    let days = |time: Duration| time.as_secs() / 86_400;
    let when = match end > now {
        true => format!("end in {} days", days(end.since(now))),
        false => format!("ended {} days ago", days(now.since(end))),
    };
    let reason = match &authority.waits_for {
        Some(reason) => format!("are not made anew yet: {reason}"),
        None => "are made anew by the host that leads".to_owned(),
    };
    format!("\nthe certificates of the cluster's authority {when}, and {reason}\n")
}

pub async fn recover(config: &Config) -> Result<()> {
    let state = config.state();
    let membership = Membership::read(&state)?;
    let node = membership.as_ref().map_or(1, |membership| membership.node);
    let own = address::own(config, membership.as_ref());
    let refused = |error: store::OpenError| anyhow::anyhow!("{error}\nhint: {}", error.hint());
    let peer = store::Peer {
        id: node,
        address: own,
    };
    let found = store::recover::<state::State>(state.raft(), peer.clone())
        .await
        .map_err(refused)?;
    // The others are nobody from here on: their certificates count for nothing without their rows.
    let options = store::Options::new(
        state.raft(),
        node,
        store::Start::Join,
        std::sync::Arc::new(store::NoTransport),
    );
    let store = store::Store::<state::State>::open(options)
        .await
        .map_err(refused)?;
    let members = store.read().state.members.clone();
    for other in members.values().filter(|member| member.node != node) {
        let change = state::MembershipChange::Remove { node: other.node };
        let command = state::Command {
            at: daemon::now().max(store.read().state.last_at),
            change: state::Change::Membership { change },
        };
        store
            .write(command)
            .await?
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        println!("{} ({}) is not a member any more.", other.host, other.addr);
    }
    store.shutdown().await;
    println!(
        "This host is the only member now, with all that it had: {} entries. Start its daemon.\n\n\
         WARNING: the {} other members must never be started again with the state that they have. Run\n\
         `flynn-host teardown --remove-state` on each before it joins again, or wipe its disk.",
        found.last_log_index.map_or(0, |index| index + 1),
        found.members_before.len().saturating_sub(1)
    );
    Ok(())
}

/// The server's words, and its hint on a line of its own.
pub fn told(error: ClientError) -> anyhow::Error {
    match error {
        ClientError::Api(Error { message, hint, .. }) if !hint.is_empty() => {
            anyhow::anyhow!("{message}\nhint: {hint}")
        }
        ClientError::Api(Error { message, .. }) => anyhow::anyhow!(message),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u64, votes: bool, state: Option<HostState>) -> MemberView {
        let host = format!("host{node}");
        let row = serde_json::json!({
            "id": host, "addr": format!("127.0.0.1:1113"), "state": state.unwrap_or(HostState::Up),
            "memory_bytes": 0, "cpu_milli": 0, "version": "v1",
            "created_at": Timestamp::EPOCH, "started_at": Timestamp::EPOCH,
        });
        MemberView {
            member: Member {
                node,
                host: host.parse().unwrap(),
                addr: format!("10.0.0.{node}:1115"),
                subnet: format!("100.100.{}.0/22", node * 4 - 4),
                vote: Vote::Auto,
                joined_at: Timestamp::EPOCH,
            },
            is_voter: votes,
            is_follower: !votes,
            host: state.map(|_| serde_json::from_value(row).unwrap()),
        }
    }

    fn cluster() -> ClusterView {
        let since = Timestamp::EPOCH;
        ClusterView {
            node: 1,
            leader: Some(1),
            term: 3,
            last_index: Some(41),
            applied_index: Some(41),
            members: vec![
                member(1, true, Some(HostState::Up)),
                member(2, true, Some(HostState::Up)),
                member(3, true, Some(HostState::Silent { since })),
                member(4, false, Some(HostState::Up)),
                member(5, false, None),
            ],
            floating: vec![],
            authority: None,
        }
    }

    #[test]
    fn hosts_are_listed_as_the_original_listed_them() {
        let text = table(&list(&cluster(), Timestamp::from_micros(90_000_000)));
        assert_eq!(
            text,
            "ID     ADDR           RAFT STATUS\n\
             host1  10.0.0.1:1113  peer (leader)\n\
             host2  10.0.0.2:1113  peer\n\
             host3  10.0.0.3:1113  peer, silent since About a minute ago\n\
             host4  10.0.0.4:1113  proxy\n\
             host5  10.0.0.5:1113  proxy, not started yet\n"
        );
    }

    #[test]
    fn who_has_a_floating_address_is_listed() {
        let mut cluster = cluster();
        let view = |holder: Option<&str>| api::peers::FloatingView {
            address: "10.0.0.100/24".into(),
            holder: holder.map(|host| host.parse().unwrap()),
        };
        cluster.floating = vec![view(Some("host1"))];
        let text = table(&list(&cluster, Timestamp::EPOCH));
        let (head, first) = text.split_once('\n').unwrap();
        assert!(head.ends_with("FLOATING"), "{text}");
        assert!(first.lines().next().unwrap().ends_with("10.0.0.100/24"), "{text}");
        let status = report(&cluster, Timestamp::EPOCH);
        assert!(status.ends_with("10.0.0.100/24 is held by host1\n"), "{status}");
        cluster.floating = vec![view(None)];
        let status = report(&cluster, Timestamp::EPOCH);
        assert!(status.ends_with("is held by nobody just now\n"), "{status}");
    }

    #[test]
    fn the_status_says_that_certificates_should_have_been_made_anew_and_why_they_are_not() {
        let day = Duration::from_secs(86_400);
        let mut cluster = cluster();
        let quiet = report(&cluster, Timestamp::EPOCH);
        let mut check = |days_from_now: u32, waits_for: Option<&str>, expected: &str| {
            cluster.authority = Some(AuthorityView {
                ends_at: Timestamp::EPOCH + day * 1_825,
                domains_end_at: Some(Timestamp::EPOCH + day * 1_900),
                renewal_at: Timestamp::EPOCH + day * 1_460,
                waits_for: waits_for.map(str::to_owned),
            });
            let text = report(&cluster, Timestamp::EPOCH + day * days_from_now);
            let last = text.lines().next_back().unwrap_or_default();
            match expected {
                "" => assert_eq!(text.lines().count(), quiet.lines().count(), "{text}"),
                _ => assert_eq!(
                    last,
                    format!("the certificates of the cluster's authority {expected}")
                ),
            }
        };
        check(1_459, None, "");
        check(
            1_525,
            Some("host2 has another version, v1"),
            "end in 300 days, and are not made anew yet: host2 has another version, v1",
        );
        check(
            1_830,
            None,
            "ended 5 days ago, and are made anew by the host that leads",
        );
    }

    #[test]
    fn the_status_says_who_leads_and_how_many_voters_are_up() {
        let text = report(&cluster(), Timestamp::EPOCH);
        assert!(
            text.starts_with("host1 leads, 2 of 3 voters are up, term 3, 42 entries\n"),
            "{text}"
        );
        let mut without = cluster();
        without.leader = None;
        assert!(report(&without, Timestamp::EPOCH).starts_with("nobody leads: nothing can be changed"));
    }

    #[test]
    fn lengths_of_time_have_a_unit() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(seconds(text), expected, "{text}");
        check("90s", Some(90));
        check("1h", Some(3600));
        check("2d", Some(172_800));
        for bad in ["", "h", "1", "-1h", "1w", "1€"] {
            check(bad, None);
        }
    }
}
