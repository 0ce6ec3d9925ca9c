//! Whether a history of one register is linearizable: whether each operation can be given a moment between its
//! call and its return so that, one after the other, they give what they gave.
//!
//! The search of Wing and Gong with Lowe's memory of configurations that were tried. An operation whose outcome
//! nobody knows may have its moment at any time after its call, or never.

use std::collections::HashSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Write(u64),
    /// What it saw.
    Read(u64),
    /// Whether it found what it was to replace; nobody knows for one without return.
    Swap {
        from: u64,
        to: u64,
        done: bool,
    },
}

#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub call: u64,
    /// None: the outcome is unknown.
    pub ret: Option<u64>,
    pub deed: Deed,
}

impl Operation {
    /// The register's value afterwards, if the operation may happen to `value` with its outcome.
    fn after(&self, value: u64) -> Option<u64> {
        match self.deed {
            Deed::Write(written) => Some(written),
            Deed::Read(seen) => (seen == value).then_some(value),
            Deed::Swap { from, to, .. } if self.ret.is_none() => Some(if from == value { to } else { value }),
            Deed::Swap { from, to, done } => {
                (done == (from == value)).then_some(if done { to } else { value })
            }
        }
    }
}

/// The register is 0 at first.
pub fn is_linearizable(operations: &[Operation]) -> bool {
    let mut operations: Vec<Operation> = operations
        .iter()
        // What was read and not heard constrains nothing.
        .filter(|operation| operation.ret.is_some() || !matches!(operation.deed, Deed::Read(_)))
        .copied()
        .collect();
    operations.sort_by_key(|operation| operation.call);
    let mut tried = HashSet::new();
    let mut open = vec![(vec![0_u64; operations.len().div_ceil(64)], 0_u64)];
    while let Some((done, value)) = open.pop() {
        let is_done = |at: usize| done[at / 64] >> (at % 64) & 1 == 1;
        let left = || (0..operations.len()).filter(|at| !is_done(*at));
        // Whatever has returned comes before what was called later.
        let first_return = left().filter_map(|at| operations[at].ret).min();
        let Some(first_return) = first_return else {
            return true;
        };
        for at in left().take_while(|at| operations[*at].call < first_return) {
            let Some(after) = operations[at].after(value) else {
                continue;
            };
            let mut next = done.clone();
            next[at / 64] |= 1 << (at % 64);
            if tried.insert((next.clone(), after)) {
                open.push((next, after));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `CALL-RETURN DEED`, with `?` for a return that never came.
    #[track_caller]
    fn check(history: &str, expected: bool) {
        let operations: Vec<Operation> = history
            .split(';')
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let (call, ret) = words[0].split_once('-').unwrap();
                let number = |at: usize| words[at].parse::<u64>().unwrap();
                let deed = match words[1] {
                    "write" => Deed::Write(number(2)),
                    "read" => Deed::Read(number(2)),
                    "swap" => Deed::Swap {
                        from: number(2),
                        to: number(3),
                        done: words[4] == "done",
                    },
                    _ => panic!("what is {line:?}?"),
                };
                Operation {
                    call: call.parse().unwrap(),
                    ret: ret.parse().ok(),
                    deed,
                }
            })
            .collect();
        assert_eq!(is_linearizable(&operations), expected, "{history}");
    }

    #[test]
    fn one_after_the_other_each_sees_what_was_written_before() {
        check("1-2 write 5; 3-4 read 5", true);
        check("1-2 write 5; 3-4 read 0", false);
        check("1-2 write 5; 3-4 write 6; 5-6 read 5", false);
    }

    #[test]
    fn what_overlaps_may_have_happened_in_any_order() {
        check("1-4 write 5; 2-3 read 0", true);
        check("1-4 write 5; 2-3 read 5", true);
        check("1-10 write 5; 2-9 write 6; 11-12 read 5; 13-14 read 5", true);
        check("1-10 write 5; 2-9 write 6; 11-12 read 5; 13-14 read 6", false);
    }

    #[test]
    fn nobody_reads_back_what_another_has_seen_replaced() {
        check("1-10 write 5; 2-3 read 5; 4-5 read 0", false);
    }

    #[test]
    fn what_nobody_heard_of_may_have_happened_later_or_never() {
        check("1-? write 5; 2-3 read 0", true);
        check("1-? write 5; 2-3 read 0; 4-5 read 5", true);
        check("1-? write 5; 2-3 read 5; 4-5 read 0", false);
    }

    #[test]
    fn a_swap_says_what_it_found() {
        check("1-2 write 5; 3-4 swap 5 6 done; 5-6 read 6", true);
        check("1-2 write 5; 3-4 swap 4 6 refused; 5-6 read 5", true);
        check("1-2 write 5; 3-4 swap 5 6 refused", false);
        check("1-2 write 5; 3-6 swap 5 6 done; 4-7 swap 5 7 done", false);
        check(
            "1-2 write 5; 3-? swap 5 6 done; 4-7 swap 5 7 refused; 8-9 read 6",
            true,
        );
    }
}
