//! Members of the cluster: who they are, what lets another join, which addresses its jobs get.
//!
//! Rows say who *is to be* a member; the leader makes the group of voters and followers be so.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use types::{HostId, JoinToken, Member, Timestamp, TokenUse, Vote};

use crate::{State, command::Rejection};

/// How long a token that is used or expired is known, for whoever wonders why it does not work.
const TOKEN_MEMORY: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "snake_case")]
pub enum MembershipChange {
    CreateToken {
        token: JoinToken,
    },
    /// Makes the host that shows a token a member, with the next number and the next free subnet.
    Join {
        token_hash: String,
        host: HostId,
        joiner: String,
        addr: String,
        /// What subnets are cut from, and their size.
        network: String,
        prefix: u8,
    },
    /// A host that was there before there were rows of members: the one that founded the cluster.
    Found {
        node: u64,
        host: HostId,
        addr: String,
        subnet: String,
    },
    /// Where it is now.
    Move {
        node: u64,
        addr: String,
    },
    SetVote {
        node: u64,
        vote: Vote,
    },
    /// With its row as a host: its jobs are lost, its volumes gone.
    Remove {
        node: u64,
    },
}

impl State {
    pub fn member_of(&self, host: &HostId) -> Option<&Arc<Member>> {
        self.members.values().find(|member| member.host == *host)
    }

    pub(crate) fn change_membership(
        &mut self,
        at: Timestamp,
        change: MembershipChange,
    ) -> Result<(), Rejection> {
        match change {
            MembershipChange::CreateToken { token } => {
                let forgotten = at - TOKEN_MEMORY;
                self.tokens = self
                    .tokens
                    .iter()
                    .filter(|(_, known)| known.expires_at > forgotten)
                    .map(|(hash, known)| (hash.clone(), known.clone()))
                    .collect();
                self.tokens.insert(token.hash.clone(), Arc::new(token));
                Ok(())
            }
            MembershipChange::Join {
                token_hash,
                host,
                joiner,
                addr,
                network,
                prefix,
            } => self.join(at, &token_hash, TokenUse { host, joiner }, addr, &network, prefix),
            MembershipChange::Found {
                node,
                host,
                addr,
                subnet,
            } => {
                self.last_node = self.last_node.max(node);
                let known = self.members.get(&node);
                let member = Member {
                    node,
                    host,
                    addr,
                    subnet,
                    vote: known.map_or(Vote::Auto, |known| known.vote),
                    joined_at: known.map_or(at, |known| known.joined_at),
                };
                self.members.insert(node, Arc::new(member));
                Ok(())
            }
            MembershipChange::Move { node, addr } => self.update_member(node, |member| member.addr = addr),
            MembershipChange::SetVote { node, vote } => self.update_member(node, |member| member.vote = vote),
            MembershipChange::Remove { node } => {
                if let Some(member) = self.members.remove(&node) {
                    self.hosts.remove(&member.host);
                    self.forget_volumes_on(at, &member.host);
                }
                Ok(())
            }
        }
    }

    fn update_member(&mut self, node: u64, update: impl FnOnce(&mut Member)) -> Result<(), Rejection> {
        let found = self
            .members
            .get(&node)
            .ok_or_else(|| Rejection::not_found(format!("member {node}")))?;
        let mut member = Member::clone(found);
        update(&mut member);
        self.members.insert(node, Arc::new(member));
        Ok(())
    }

    fn join(
        &mut self,
        at: Timestamp,
        token_hash: &str,
        by: TokenUse,
        addr: String,
        network: &str,
        prefix: u8,
    ) -> Result<(), Rejection> {
        let refused = |message: String| Rejection::invalid("token", message);
        let token = self
            .tokens
            .get(token_hash)
            .ok_or_else(|| refused("is not one of this cluster, or is long expired".into()))?
            .clone();
        match &token.used {
            // Its answer was lost on the way.
            Some(used) if *used == by && self.member_of(&by.host).is_some() => {
                let node = self.member_of(&by.host).expect("it was just seen").node;
                return self.update_member(node, |member| member.addr = addr);
            }
            Some(used) => return Err(refused(format!("was used already, by host {}", used.host))),
            None if at > token.expires_at => {
                return Err(refused(format!("expired at {}", token.expires_at)));
            }
            None => {}
        }
        if self.member_of(&by.host).is_some() || self.hosts.contains_key(&by.host) {
            let message = format!("the cluster has a host {} already", by.host);
            return Err(Rejection::Exists { message });
        }
        if let Some(other) = self.members.values().find(|member| member.addr == addr) {
            let message = format!("the cluster has host {} at {addr} already", other.host);
            return Err(Rejection::Exists { message });
        }
        let taken: Vec<_> = self
            .members
            .values()
            .filter_map(|member| parse(&member.subnet))
            .collect();
        let subnet = parse(network)
            .and_then(|network| free_subnet(network, prefix, &taken))
            .ok_or_else(|| {
                Rejection::conflict(format!("{network} has no free /{prefix} for another host"))
            })?;
        self.last_node += 1;
        let member = Member {
            node: self.last_node,
            host: by.host.clone(),
            addr,
            subnet,
            vote: Vote::Auto,
            joined_at: at,
        };
        self.members.insert(member.node, Arc::new(member));
        let token = JoinToken {
            used: Some(by),
            ..JoinToken::clone(&token)
        };
        self.tokens.insert(token.hash.clone(), Arc::new(token));
        Ok(())
    }
}

/// First and last address.
type Range = (u32, u32);

fn parse(network: &str) -> Option<Range> {
    let (base, prefix) = network.split_once('/')?;
    let base = u32::from(base.parse::<Ipv4Addr>().ok()?);
    let prefix: u32 = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    let size_less_one = u32::MAX.checked_shr(prefix).unwrap_or(0);
    (base & size_less_one == 0).then_some((base, base | size_less_one))
}

fn free_subnet(network: Range, prefix: u8, taken: &[Range]) -> Option<String> {
    let size = 1u32.checked_shl(32 - u32::from(prefix))?;
    let mut base = network.0;
    loop {
        let last = base.checked_add(size - 1).filter(|last| *last <= network.1)?;
        if taken.iter().all(|(from, to)| last < *from || base > *to) {
            return Some(format!("{}/{prefix}", Ipv4Addr::from(base)));
        }
        base = last.checked_add(1)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Change, Command};

    const HOUR: i64 = 3_600_000_000;

    struct World(State);

    impl World {
        fn founded() -> World {
            let mut world = World(State::default());
            world.at(0, founding()).unwrap();
            world
        }

        fn at(&mut self, micros: i64, change: MembershipChange) -> Result<(), Rejection> {
            let at = Timestamp::from_micros(micros);
            let change = Change::Membership { change };
            self.0.apply(1, Command { at, change }).map(drop)
        }

        fn token(&mut self, hash: &str) {
            let token = JoinToken {
                hash: hash.into(),
                created_at: Timestamp::EPOCH,
                expires_at: Timestamp::from_micros(HOUR),
                used: None,
            };
            self.at(0, MembershipChange::CreateToken { token }).unwrap();
        }

        fn members(&self) -> Vec<String> {
            let members = self.0.members.values();
            members
                .map(|member| {
                    format!(
                        "{} {} {} {}",
                        member.node, member.host, member.addr, member.subnet
                    )
                })
                .collect()
        }
    }

    fn founding() -> MembershipChange {
        MembershipChange::Found {
            node: 1,
            host: "one".parse().unwrap(),
            addr: "10.0.0.1:1115".into(),
            subnet: "100.100.0.0/22".into(),
        }
    }

    fn join(token: &str, host: &str, addr: &str) -> MembershipChange {
        MembershipChange::Join {
            token_hash: token.into(),
            host: host.parse().unwrap(),
            joiner: format!("{host} by itself"),
            addr: addr.into(),
            network: "100.100.0.0/16".into(),
            prefix: 22,
        }
    }

    #[test]
    fn each_token_lets_one_host_join_with_a_number_and_a_subnet_of_its_own() {
        let mut world = World::founded();
        world.token("a");
        world.token("b");
        world.at(1, join("a", "two", "10.0.0.2:1115")).unwrap();
        world.at(1, join("b", "three", "10.0.0.3:1115")).unwrap();
        assert_eq!(
            world.members(),
            [
                "1 one 10.0.0.1:1115 100.100.0.0/22",
                "2 two 10.0.0.2:1115 100.100.4.0/22",
                "3 three 10.0.0.3:1115 100.100.8.0/22",
            ]
        );
        let used = world.at(2, join("a", "four", "10.0.0.4:1115")).unwrap_err();
        assert_eq!(used.to_string(), "was used already, by host two");
        // A joiner whose answer was lost asks again and gets the same.
        world.at(2, join("a", "two", "10.0.0.2:1115")).unwrap();
        assert_eq!(world.0.members.len(), 3);
    }

    #[test]
    fn a_host_is_refused_for_reasons_that_are_told() {
        let mut world = World::founded();
        world.token("a");
        let mut check = |at, change, expected: &str| {
            let error = world.at(at, change).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        check(
            1,
            join("x", "two", "10.0.0.2:1115"),
            "is not one of this cluster, or is long expired",
        );
        check(
            2 * HOUR,
            join("a", "two", "10.0.0.2:1115"),
            "expired at 1970-01-01T01:00:00Z",
        );
        check(
            1,
            join("a", "one", "10.0.0.2:1115"),
            "the cluster has a host one already",
        );
        check(
            1,
            join("a", "two", "10.0.0.1:1115"),
            "the cluster has host one at 10.0.0.1:1115 already",
        );
        assert_eq!(world.0.tokens["a"].used, None);
    }

    #[test]
    fn numbers_are_never_given_twice_and_subnets_are() {
        let mut world = World::founded();
        for (token, host) in [("a", "two"), ("b", "three")] {
            world.token(token);
            world.at(1, join(token, host, &format!("{host}:1"))).unwrap();
            let node = world.0.last_node;
            world.at(1, MembershipChange::Remove { node }).unwrap();
        }
        world.token("c");
        world.at(1, join("c", "two", "two:1")).unwrap();
        assert_eq!(world.members()[1], "4 two two:1 100.100.4.0/22");
    }

    #[test]
    fn members_and_tokens_outlive_a_snapshot_and_old_tokens_are_forgotten() {
        let mut world = World::founded();
        world.token("a");
        world.at(1, join("a", "two", "10.0.0.2:1115")).unwrap();
        let vote = MembershipChange::SetVote {
            node: 2,
            vote: Vote::Promoted,
        };
        world.at(5, vote).unwrap();
        let addr = "10.0.0.9:1115".to_owned();
        world.at(6, MembershipChange::Move { node: 2, addr }).unwrap();
        let mut image = vec![];
        world.0.write_image(&mut image).unwrap();
        let again = State::read_image(&mut image.as_slice()).unwrap();
        assert_eq!(again.members, world.0.members);
        assert_eq!(again.tokens, world.0.tokens);
        assert_eq!(again.last_node, 2);
        assert_eq!(again.last_at, Timestamp::from_micros(6));
        let token = JoinToken {
            hash: "new".into(),
            created_at: Timestamp::EPOCH,
            expires_at: Timestamp::from_micros(1000 * HOUR),
            used: None,
        };
        world
            .at(200 * HOUR, MembershipChange::CreateToken { token })
            .unwrap();
        assert_eq!(world.0.tokens.keys().collect::<Vec<_>>(), ["new"]);
    }

    #[test]
    fn subnets_fit_and_do_not_overlap() {
        let check = |network: &str, prefix, taken: &[&str], expected: Option<&str>| {
            let taken: Vec<_> = taken.iter().map(|text| parse(text).unwrap()).collect();
            let found = parse(network).and_then(|network| free_subnet(network, prefix, &taken));
            assert_eq!(found.as_deref(), expected, "{network} {taken:?}");
        };
        check("10.0.0.0/24", 26, &[], Some("10.0.0.0/26"));
        check("10.0.0.0/24", 26, &["10.0.0.0/25"], Some("10.0.0.128/26"));
        check("10.0.0.0/24", 26, &["10.0.0.128/32"], Some("10.0.0.0/26"));
        check("10.0.0.0/24", 25, &["10.0.0.128/32", "10.0.0.0/26"], None);
        check("10.0.0.0/24", 23, &[], None);
        check("10.0.0.1/24", 26, &[], None);
        check(
            "255.255.255.0/24",
            25,
            &["255.255.255.0/25"],
            Some("255.255.255.128/25"),
        );
        check("255.255.255.0/24", 25, &["255.255.255.0/24"], None);
    }
}
