//! Whether a failed attempt may be repeated.
//!
//! The rule protects two things. The user: a request that may have had an effect is repeated only
//! if repeating it is harmless by the definition of its method. The backends: repeats are at most a
//! tenth of all requests over time, so that a struggling app is not finished off by its router.

/// Attempts in all, the first included.
pub const ATTEMPTS_MAX: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection came about, so nothing was sent.
    NotConnected,
    /// A connection kept from an earlier request turned out to be closed before a byte of response.
    ReusedConnectionClosed,
    /// A fresh connection broke before a byte of response.
    ConnectionClosed,
    /// What was sent was not acknowledged: the backend's host is gone, or the way to it.
    Unheard,
    /// No response in time. The backend is still at it: a second copy would double its work.
    TimedOut,
    /// Bytes of a response have been received.
    ResponseBroken,
}

#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// 1 for the first.
    pub number: u32,
    pub failure: Failure,
    /// Some of the request went out on the wire.
    pub was_sent: bool,
    pub is_idempotent: bool,
    /// The whole body is still at hand, or there is none.
    pub is_replayable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Go to a backend that has not been tried.
    OtherBackend,
    /// Ask the same one over a fresh connection: a closed idle connection says nothing about it.
    FreshConnection,
    No(GiveUp),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// It might take effect twice.
    NotSafe,
    TooManyAttempts,
    BudgetSpent,
}

pub fn retry(attempt: &Attempt, budget: &mut Budget) -> Retry {
    let is_safe = match attempt.failure {
        Failure::NotConnected => true,
        Failure::ReusedConnectionClosed | Failure::ConnectionClosed | Failure::Unheard => {
            !attempt.was_sent || (attempt.is_idempotent && attempt.is_replayable)
        }
        Failure::TimedOut | Failure::ResponseBroken => false,
    };
    if !is_safe || (attempt.was_sent && !attempt.is_replayable) {
        return Retry::No(GiveUp::NotSafe);
    }
    if attempt.number >= ATTEMPTS_MAX {
        return Retry::No(GiveUp::TooManyAttempts);
    }
    // The race with an idle timeout is nobody's failure and costs the backend nothing.
    if attempt.failure == Failure::ReusedConnectionClosed {
        return Retry::FreshConnection;
    }
    if !budget.spend() {
        return Retry::No(GiveUp::BudgetSpent);
    }
    Retry::OtherBackend
}

/// Safe to repeat by RFC 9110, 9.2.2.
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

/// Lets a tenth of the requests be repeats, with a reserve for quiet times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    tenths: u32,
}

impl Budget {
    /// A quiet app gets this many repeats at once; also the cap of what can be saved up.
    const RESERVE: u32 = 100;

    pub fn full() -> Budget {
        Budget {
            tenths: Self::RESERVE * 10,
        }
    }

    /// Counts one request.
    pub fn earn(&mut self) {
        self.tenths = (self.tenths + 1).min(Self::RESERVE * 10);
    }

    fn spend(&mut self) -> bool {
        let can = self.tenths >= 10;
        if can {
            self.tenths -= 10;
        }
        can
    }
}

/// How long a backend is passed over after so many refused connections in a row.
///
/// One second, doubling to half a minute: shorter than the time in which discovery notices for
/// itself at first, and long enough in the end that a dead backend costs next to nothing.
pub fn ejection_ms(refusals: u32) -> u64 {
    match refusals {
        0 => 0,
        n => (1_000 << (n - 1).min(5)).min(30_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(failure: Failure) -> Attempt {
        Attempt {
            number: 1,
            failure,
            was_sent: true,
            is_idempotent: true,
            is_replayable: true,
        }
    }

    #[test]
    fn a_refused_connection_is_repeated_whatever_the_method() {
        let post = Attempt {
            was_sent: false,
            is_idempotent: false,
            ..attempt(Failure::NotConnected)
        };
        assert_eq!(retry(&post, &mut Budget::full()), Retry::OtherBackend);
    }

    #[test]
    fn a_post_that_was_sent_is_never_repeated() {
        for failure in [
            Failure::ReusedConnectionClosed,
            Failure::ConnectionClosed,
            Failure::Unheard,
            Failure::TimedOut,
        ] {
            let post = Attempt {
                is_idempotent: false,
                ..attempt(failure)
            };
            assert_eq!(retry(&post, &mut Budget::full()), Retry::No(GiveUp::NotSafe));
        }
    }

    #[test]
    fn where_nobody_heard_a_request_another_backend_gets_it() {
        let get = attempt(Failure::Unheard);
        assert_eq!(retry(&get, &mut Budget::full()), Retry::OtherBackend);
    }

    #[test]
    fn a_body_that_is_gone_cannot_be_repeated() {
        let put = Attempt {
            is_replayable: false,
            ..attempt(Failure::ConnectionClosed)
        };
        assert_eq!(retry(&put, &mut Budget::full()), Retry::No(GiveUp::NotSafe));
    }

    #[test]
    fn a_stale_connection_does_not_touch_the_budget() {
        let mut budget = Budget { tenths: 0 };
        assert_eq!(
            retry(&attempt(Failure::ReusedConnectionClosed), &mut budget),
            Retry::FreshConnection
        );
        assert_eq!(
            retry(&attempt(Failure::ConnectionClosed), &mut budget),
            Retry::No(GiveUp::BudgetSpent)
        );
    }

    #[test]
    fn repeats_are_a_tenth_of_the_requests_in_the_long_run() {
        let mut budget = Budget::full();
        let mut repeats = 0;
        for _ in 0..100_000 {
            budget.earn();
            if retry(&attempt(Failure::ConnectionClosed), &mut budget) == Retry::OtherBackend {
                repeats += 1;
            }
        }
        assert!((9_900..=10_200).contains(&repeats), "{repeats}");
    }

    #[test]
    fn ejection_grows_and_stops_growing() {
        let times: Vec<u64> = (0..8).map(ejection_ms).collect();
        assert_eq!(times, [0, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    }
}
