//! What to do on this host so that what runs becomes what is wanted. Pure.
//!
//! [`Wanted`] is what the controller's stream has said; [`Life`] is how far each job of this host is.
//! [`reconcile`] compares the two. Doing what it says and asking again gives nothing to do, and a
//! silent or absent controller never gives a reason to stop anything: only a list that was sent to
//! its end ([`Assignment::Current`]) makes a job surplus.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use api::host::{Assignment, HostJob};
use types::JobId;

/// What the controller wants of one job.
#[derive(Debug, Clone, PartialEq)]
pub enum Wish {
    Run(Arc<HostJob>),
    /// Goes on if it is there, is not begun if it is not.
    Keep,
    Stop,
}

#[derive(Debug, Clone, Default)]
pub struct Wanted {
    wishes: BTreeMap<JobId, Wish>,
    /// Named since the stream was (re)connected, until its first list is complete.
    named: Option<BTreeSet<JobId>>,
    is_complete: bool,
}

impl Wanted {
    /// A new stream: everything will be named again.
    pub fn reconnected(&mut self) {
        self.named = Some(BTreeSet::new());
    }

    /// Takes one message. An id that is none is refused by saying so.
    pub fn hear(&mut self, message: Assignment) -> Result<(), String> {
        let (id, wish) = match message {
            Assignment::Run { job } => match job.job_id() {
                Some(id) => (id, Wish::Run(Arc::from(job))),
                None => return Err(job.id),
            },
            Assignment::Stop { job } => (job, Wish::Stop),
            Assignment::Drain { job } => (job, Wish::Keep),
            // Not jobs: see `volumes` and `network`.
            Assignment::Volume { .. } | Assignment::Network { .. } => return Ok(()),
            Assignment::Current => {
                if let Some(named) = self.named.take() {
                    self.wishes.retain(|id, _| named.contains(id));
                }
                self.is_complete = true;
                return Ok(());
            }
        };
        if let Some(named) = &mut self.named {
            named.insert(id);
        }
        self.wishes.insert(id, wish);
        Ok(())
    }

    /// The job has ended and the controller knows: what it wanted of it is settled.
    pub fn settled(&mut self, job: JobId) {
        self.wishes.remove(&job);
    }

    pub fn named(&self) -> impl Iterator<Item = JobId> {
        self.wishes.keys().copied()
    }

    pub fn job(&self, id: JobId) -> Option<Arc<HostJob>> {
        match self.wishes.get(&id) {
            Some(Wish::Run(job)) => Some(job.clone()),
            _ => None,
        }
    }
}

/// How far a job of this host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Starting,
    Running,
    Stopping,
    /// Ended; the controller has not confirmed that it knows.
    Down,
    /// Ended, and the controller knows. A message that was on its way must not begin it anew.
    Settled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Start(JobId),
    Stop(JobId),
    /// Report as down a job that is to end and that this host never had.
    Deny(JobId),
}

pub fn reconcile(wanted: &Wanted, actual: &BTreeMap<JobId, Life>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (id, wish) in &wanted.wishes {
        match (wish, actual.get(id)) {
            (Wish::Run(_), None) => steps.push(Step::Start(*id)),
            (Wish::Stop, Some(Life::Starting | Life::Running)) => steps.push(Step::Stop(*id)),
            (Wish::Stop | Wish::Keep, None) => steps.push(Step::Deny(*id)),
            _ => {}
        }
    }
    if wanted.is_complete {
        let surplus = actual.iter().filter(|(id, life)| {
            matches!(life, Life::Starting | Life::Running) && !wanted.wishes.contains_key(id)
        });
        steps.extend(surplus.map(|(id, _)| Step::Stop(*id)));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> JobId {
        let digit = name.as_bytes()[0];
        JobId(uuid::Uuid::from_bytes([digit; 16]))
    }

    fn name(id: JobId) -> char {
        id.0.as_bytes()[0] as char
    }

    fn said(words: &str) -> Wanted {
        let mut wanted = Wanted::default();
        for word in words.split(", ").filter(|word| !word.is_empty()) {
            let message = match word.split_once(' ') {
                Some(("run", job)) => {
                    let job = HostJob {
                        id: format!("host0-{}", id(job)),
                        ..HostJob::default()
                    };
                    Assignment::Run { job: Box::new(job) }
                }
                Some(("stop", job)) => Assignment::Stop { job: id(job) },
                Some(("drain", job)) => Assignment::Drain { job: id(job) },
                None if word == "current" => Assignment::Current,
                None if word == "reconnected" => {
                    wanted.reconnected();
                    continue;
                }
                other => panic!("{other:?}"),
            };
            wanted.hear(message).unwrap();
        }
        wanted
    }

    fn have(words: &str) -> BTreeMap<JobId, Life> {
        let entries = words.split(", ").filter(|word| !word.is_empty());
        entries
            .map(|word| {
                let (job, life) = word.split_once(' ').unwrap();
                let life = match life {
                    "starting" => Life::Starting,
                    "running" => Life::Running,
                    "stopping" => Life::Stopping,
                    "down" => Life::Down,
                    "settled" => Life::Settled,
                    other => panic!("{other}"),
                };
                (id(job), life)
            })
            .collect()
    }

    fn check(wanted: &str, actual: &str, expected: &str) {
        let steps: Vec<String> = reconcile(&said(wanted), &have(actual))
            .into_iter()
            .map(|step| match step {
                Step::Start(job) => format!("start {}", name(job)),
                Step::Stop(job) => format!("stop {}", name(job)),
                Step::Deny(job) => format!("deny {}", name(job)),
            })
            .collect();
        assert_eq!(steps.join(", "), expected, "wanted {wanted:?}, actual {actual:?}");
    }

    #[test]
    fn what_is_wanted_and_not_there_is_started_once() {
        check("reconnected, run a, run b, current", "b running", "start a");
        check("reconnected, run a, current", "a starting", "");
    }

    #[test]
    fn jobs_are_started_before_the_list_is_complete() {
        check("reconnected, run a", "", "start a");
    }

    #[test]
    fn a_job_that_is_to_stop_is_stopped_once_and_at_any_stage() {
        check(
            "stop a, stop b, stop c, stop d",
            "a starting, b running, c stopping, d down",
            "stop a, stop b",
        );
    }

    #[test]
    fn surplus_is_stopped_only_once_the_list_is_complete() {
        check("reconnected, run a", "a running, b running", "");
        check(
            "reconnected, run a, current",
            "a running, b running, c down",
            "stop b",
        );
    }

    #[test]
    fn a_new_stream_does_not_make_the_old_list_void_before_it_is_complete() {
        check(
            "reconnected, run a, run b, current, reconnected, run a",
            "a running, b running",
            "",
        );
        check(
            "reconnected, run a, run b, current, reconnected, run a, current",
            "a running, b running",
            "stop b",
        );
    }

    #[test]
    fn a_draining_job_goes_on_and_is_not_begun() {
        check("reconnected, drain a, drain b, current", "a running", "deny b");
        check("reconnected, run a, drain a, current", "a starting", "");
    }

    #[test]
    fn the_end_of_a_job_that_never_came_here_is_reported() {
        check("stop a", "", "deny a");
    }

    #[test]
    fn a_late_message_does_not_begin_an_ended_job_anew() {
        check("run a, run b", "a settled, b down", "");
        check("stop a", "a settled", "");
    }

    #[test]
    fn a_settled_wish_is_forgotten() {
        let mut wanted = said("reconnected, run a, current");
        wanted.settled(id("a"));
        assert_eq!(reconcile(&wanted, &have("")), []);
    }
}
