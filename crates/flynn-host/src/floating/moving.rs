//! When the floating address goes to another host, though this one lives. No clock, no network.
//!
//! The host that leads has the address, so it goes with the lead. It goes when this host's router has not answered
//! its health path for a while: because it is broken, or because the host is drained, of which the router tells there. What
//! a reader would get wrong: a host that serves again does not get it back. It goes only to one that serves, stays
//! there while that one does, and no two moves follow closely upon each other.

use std::time::Duration;

/// How long the router may be away: a router that is killed or updated is back much sooner. Requests that are under
/// way when a host is drained have as long to end.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Between two moves, or tries to move.
pub const PAUSE: Duration = Duration::from_secs(15);

/// How often it is looked.
pub const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub struct Moving {
    leads_since: Option<Duration>,
    failing_since: Option<Duration>,
    tried_at: Option<Duration>,
}

impl Moving {
    /// Whether another host should have the address, if there is one that serves.
    pub fn look(&mut self, now: Duration, leads: bool, serves: bool) -> bool {
        if !leads {
            *self = Moving {
                tried_at: self.tried_at,
                ..Moving::default()
            };
            return false;
        }
        let leads_since = *self.leads_since.get_or_insert(now);
        if serves {
            self.failing_since = None;
            return false;
        }
        let since = *self.failing_since.get_or_insert(now);
        // Nobody has it for less than a pause once it has moved: two hosts in trouble do not hand it to and fro.
        let last = self.tried_at.map(|at| at.max(leads_since));
        let is_paused = last.is_some_and(|last| now.saturating_sub(last) < PAUSE);
        let may = now.saturating_sub(since) >= PATIENCE && !is_paused;
        if may {
            self.tried_at = Some(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line is a time in tenths of a second, what is seen, and whether the address is to move.
    fn check(story: &str) {
        let mut moving = Moving::default();
        for line in story.lines().map(str::trim) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let now = Duration::from_millis(100 * words[0].parse::<u64>().unwrap());
            let sees = |word: &str| words.contains(&word);
            assert_eq!(
                moving.look(now, sees("leads"), sees("serves")),
                sees("move"),
                "{line}"
            );
        }
    }

    #[test]
    fn a_router_that_does_not_answer_for_some_seconds_loses_the_address() {
        check(
            "0 leads serves
             100 leads
             110 leads
             129 leads
             130 leads move
             131 leads",
        );
    }

    #[test]
    fn a_router_that_is_updated_does_not() {
        check(
            "0 leads serves
             100 leads
             120 leads serves
             125 leads
             150 leads
             154 leads serves",
        );
    }

    #[test]
    fn where_nobody_could_take_it_that_is_looked_at_again_after_a_pause() {
        check(
            "0 leads serves
             100 leads
             130 leads move
             200 leads
             279 leads
             280 leads move
             290 leads",
        );
    }

    #[test]
    fn who_has_moved_it_and_gets_it_back_does_not_move_it_at_once() {
        check(
            "0 leads
             30 leads move
             40 follows
             50 leads
             90 leads
             199 leads
             200 leads move",
        );
    }

    #[test]
    fn who_does_not_have_it_moves_nothing() {
        check(
            "0 follows
             100 follows
             200 follows serves",
        );
    }
}
