//! The cluster's time.
//!
//! Rows are compared with the time of whoever leads: how long a host has been silent, when a crashed
//! job starts again. Clocks of hosts differ, by minutes if nobody sets them; so a host that does not
//! lead notes how far its clock is from the leader's, and goes on by that one when it comes to lead.

use std::sync::atomic::{AtomicI64, Ordering};

use types::Timestamp;

#[derive(Default)]
pub struct Clock {
    /// What has to be added to this machine's clock, in microseconds.
    ahead_micros: AtomicI64,
}

impl Clock {
    pub fn now(&self, here: Timestamp) -> Timestamp {
        Timestamp::from_micros(here.as_micros().saturating_add(self.ahead()))
    }

    /// The leader's time is this.
    pub fn follow(&self, leader: Timestamp, here: Timestamp) {
        let ahead = leader.as_micros().saturating_sub(here.as_micros());
        self.ahead_micros.store(ahead, Ordering::Relaxed);
    }

    /// This host begins to lead: time never runs back behind what is in the rows.
    pub fn lead(&self, last: Timestamp, here: Timestamp) {
        let behind = last.as_micros().saturating_sub(self.now(here).as_micros());
        self.ahead_micros.fetch_add(behind.max(0), Ordering::Relaxed);
    }

    fn ahead(&self) -> i64 {
        self.ahead_micros.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_leader_goes_on_by_the_clock_of_the_one_before() {
        let at = Timestamp::from_micros;
        let clock = Clock::default();
        assert_eq!(clock.now(at(100)), at(100));
        clock.follow(at(1100), at(100));
        assert_eq!(clock.now(at(200)), at(1200));
        clock.lead(at(1150), at(200));
        assert_eq!(clock.now(at(200)), at(1200));
        clock.follow(at(50), at(100));
        clock.lead(at(400), at(200));
        assert_eq!(clock.now(at(200)), at(400));
        assert_eq!(clock.now(at(201)), at(401));
    }
}
