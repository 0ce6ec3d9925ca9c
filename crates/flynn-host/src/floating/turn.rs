//! When a host gives itself the cluster's floating address, and when it lets go. No clock, no network.
//!
//! What a reader would get wrong: nobody is told to let go. The address is held for [`LEASE`] at a time, and the
//! kernel takes it back when nobody renews it; so whoever comes next only has to wait until that must have
//! happened, whatever has become of the host before.
//!
//! ```text
//! holder     renews ── renews ── ✕ dead, or no majority hears it      │ the kernel has taken the address
//!                                ├──────────── LEASE ─────────────────┤
//! next                           ├─ elected ─┼────────── TAKE_AFTER ──────────┤ takes it
//! ```

use std::time::Duration;

/// How long an address is held without being renewed; the kernel counts whole seconds.
pub const LEASE: Duration = Duration::from_secs(2);

/// How often it is renewed: one that comes late by three times as much does no harm.
pub const RENEW: Duration = Duration::from_millis(500);

/// How often one who waits looks whether it has waited long enough.
pub const LOOK: Duration = Duration::from_millis(100);

/// How long one who comes to lead waits. A daemon that dies has renewed last before its death, and nobody is elected
/// within 0.4 s of it: its lease ends 1.2 s too early, of which the kernel takes up to 0.25 s. A leader that is cut
/// off learns so within 1.9 s of the last answer of most voters and lets go at that moment. Only one that
/// hangs in that very moment has the address longer, for 0.7 s beside the next: less than waiting for it would cost
/// everybody, each time.
pub const TAKE_AFTER: Duration = Duration::from_millis(2_800);

/// For how long a daemon that is stopped on purpose leaves the address where it is: until another host has it, whose
/// announcement turns everybody to that one, or until the daemon is back. The router answers meanwhile.
pub const LEFT_FOR: Duration = Duration::from_secs(4);

/// What there is to go by.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Since any beginning.
    pub now: Duration,
    /// This host leads, and most voters have said so lately.
    pub leads: bool,
    /// Nobody else could lead.
    pub is_only_voter: bool,
    /// This host has the address.
    pub is_here: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Nothing,
    /// Hold the address for so long from now.
    Hold(Duration),
    Release,
}

/// One host's part in who holds one address.
#[derive(Debug, Default)]
pub struct Turn {
    leads_since: Option<Duration>,
    holds: bool,
}

impl Turn {
    pub fn look(&mut self, seen: Seen) -> Act {
        if !seen.leads {
            self.leads_since = None;
            // What a daemon before this one left ends by itself, when another has it.
            return match std::mem::take(&mut self.holds) {
                true => Act::Release,
                false => Act::Nothing,
            };
        }
        let since = *self.leads_since.get_or_insert(seen.now);
        // An address that is still here is under a lease, during which nobody else has taken it.
        let is_safe =
            self.holds || seen.is_only_voter || seen.is_here || seen.now.saturating_sub(since) >= TAKE_AFTER;
        if !is_safe {
            return Act::Nothing;
        }
        self.holds = true;
        Act::Hold(LEASE)
    }

    /// This daemon is about to end as it was told to.
    pub fn leave(&mut self) -> Act {
        match std::mem::take(&mut self.holds) {
            true => Act::Hold(LEFT_FOR),
            false => Act::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at each moment; each line is a time in milliseconds, what is seen, and what is done.
    fn check(story: &str) {
        let mut turn = Turn::default();
        let mut told = String::new();
        for line in story.lines().map(str::trim) {
            let (before, _) = line.split_once(" -> ").unwrap();
            let words: Vec<&str> = before.split_whitespace().collect();
            let sees = |word: &str| words.contains(&word);
            let act = if sees("stops") {
                turn.leave()
            } else {
                turn.look(Seen {
                    now: Duration::from_millis(words[0].parse().unwrap()),
                    leads: sees("leads"),
                    is_only_voter: sees("alone"),
                    is_here: sees("here"),
                })
            };
            let act = match act {
                Act::Nothing => "nothing".into(),
                Act::Hold(lease) => format!("hold {} s", lease.as_secs()),
                Act::Release => "release".into(),
            };
            told.push_str(&format!("{before} -> {act}\n"));
        }
        let expected: String = story.lines().map(|line| format!("{}\n", line.trim())).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn who_comes_to_lead_waits_until_the_one_before_cannot_have_it_any_more() {
        check(
            "0 follows -> nothing
             100 leads -> nothing
             1900 leads -> nothing
             2899 leads -> nothing
             2900 leads -> hold 2 s
             3400 leads -> hold 2 s",
        );
    }

    #[test]
    fn who_cannot_be_sure_to_lead_lets_go_at_once_and_waits_anew() {
        check(
            "0 leads alone -> hold 2 s
             500 cut -> release
             600 cut -> nothing
             700 leads -> nothing
             3400 leads -> nothing
             3500 leads -> hold 2 s",
        );
    }

    #[test]
    fn nobody_is_waited_for_who_could_not_lead() {
        check("0 leads alone -> hold 2 s");
    }

    #[test]
    fn a_daemon_that_comes_back_soon_goes_on_with_what_it_left() {
        check(
            "0 leads alone -> hold 2 s
             400 stops -> hold 4 s
             900 follows here -> nothing
             1000 leads here -> hold 2 s",
        );
    }

    #[test]
    fn what_was_left_is_not_taken_from_the_host_before_another_has_it() {
        check(
            "0 follows here -> nothing
             100 stops -> nothing",
        );
    }

    #[test]
    fn a_lease_is_renewed_well_before_it_ends_and_one_that_was_left_outlasts_the_wait_for_it() {
        assert!(RENEW * 3 < LEASE);
        assert!(LEFT_FOR > TAKE_AFTER + Duration::from_secs(1));
    }
}
