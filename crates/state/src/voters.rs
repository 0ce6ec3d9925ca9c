//! Which members should vote on the cluster's state.
//!
//! One voter where a second could only add a way to fail, three from three members on; more where an
//! operator promotes them. Nothing changes for a host that is away for a moment.

use std::collections::BTreeSet;

use types::Vote;

/// A member, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Voter {
    pub node: u64,
    pub wish: Vote,
    pub votes_now: bool,
    pub leads: bool,
    /// It answers, and has the state but for the last moments.
    pub is_ready: bool,
    /// It has not been heard of for so long that another should take its place.
    pub is_lost: bool,
}

/// Whoever should vote. Never nobody, and never one that is not ready and did not vote before.
pub fn voters(members: &[Voter]) -> BTreeSet<u64> {
    let now: BTreeSet<u64> = nodes(members, |member| member.votes_now);
    let mut chosen = nodes(members, |member| {
        member.wish == Vote::Promoted && (member.votes_now || member.is_ready)
    });
    let is_promoted = !chosen.is_empty();
    let wanted = match members
        .iter()
        .filter(|member| member.wish != Vote::Demoted)
        .count()
    {
        0..3 => 1,
        _ => 3,
    };
    let mut others: Vec<_> = members
        .iter()
        .filter(|member| member.wish == Vote::Auto)
        .collect();
    others.sort_by_key(|member| (!member.leads, member.node));

    // Who votes goes on, unless there are too few members for more than one.
    let may_stay = if wanted > 1 || is_promoted { usize::MAX } else { 1 };
    let stay = others.iter().filter(|member| member.votes_now && !member.is_lost);
    chosen.extend(stay.take(may_stay).map(|member| member.node));
    // Who is ready takes the place of who is missing; who is lost keeps it while nobody is ready.
    let ready = others
        .iter()
        .filter(|member| member.is_ready && !member.votes_now);
    let lost = others.iter().filter(|member| member.votes_now && member.is_lost);
    for member in ready.chain(lost) {
        if chosen.len() < wanted {
            chosen.insert(member.node);
        }
    }
    // Two are no safer than one: a third joins at the same moment.
    if chosen.is_empty() || !is_promoted && now.len() == 1 && chosen.len() == 2 {
        return now;
    }
    chosen
}

fn nodes(members: &[Voter], is_meant: impl Fn(&Voter) -> bool) -> BTreeSet<u64> {
    members
        .iter()
        .filter(|member| is_meant(member))
        .map(|member| member.node)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `1L 2v 3 4- 5p 6d 7vx`: leader, voter, ready; not ready; promoted, demoted; lost.
    #[track_caller]
    fn check(members: &str, expected: &[u64]) {
        let members: Vec<_> = members
            .split_whitespace()
            .map(|word| {
                let digits = word.trim_end_matches(|c: char| !c.is_ascii_digit());
                let has = |mark| word.contains(mark);
                Voter {
                    node: digits.parse().unwrap(),
                    wish: match (has('p'), has('d')) {
                        (true, _) => Vote::Promoted,
                        (_, true) => Vote::Demoted,
                        _ => Vote::Auto,
                    },
                    votes_now: has('v') || has('L'),
                    leads: has('L'),
                    is_ready: !has('-') && !has('x'),
                    is_lost: has('x'),
                }
            })
            .collect();
        let found: Vec<_> = voters(&members).into_iter().collect();
        assert_eq!(found, expected, "{members:?}");
    }

    #[test]
    fn one_of_one_or_two_and_three_of_more() {
        check("1L", &[1]);
        check("1L 2", &[1]);
        check("1L 2 3", &[1, 2, 3]);
        check("1L 2v 3v 4", &[1, 2, 3]);
        check("1L 2v 3v 4 5", &[1, 2, 3]);
    }

    #[test]
    fn nobody_votes_before_it_is_ready() {
        check("1L 2 3-", &[1]);
        check("1L 2- 3 4", &[1, 3, 4]);
    }

    #[test]
    fn who_is_away_for_a_moment_keeps_its_vote_and_who_is_lost_is_replaced() {
        check("1v- 2L 3v", &[1, 2, 3]);
        check("1vx 2L 3v", &[1, 2, 3]);
        check("1vx 2L 3v 4", &[2, 3, 4]);
        check("1v- 2L 3v 4", &[1, 2, 3]);
    }

    #[test]
    fn operators_have_their_way() {
        check("1L 2v 3v 4p 5p", &[1, 2, 3, 4, 5]);
        check("1L 2p", &[1, 2]);
        check("1Lp 2p", &[1, 2]);
        check("1L 2vd 3v 4", &[1, 3, 4]);
        check("1L 2vd 3v", &[1]);
        check("1Lp 2vp 3vp 4vp 5p", &[1, 2, 3, 4, 5]);
        check("1Ld", &[1]);
        check("1Ld 2", &[2]);
    }

    #[test]
    fn a_cluster_that_shrinks_to_two_has_one_voter_again() {
        check("1v 2L", &[2]);
    }
}
