//! Watches one running job's health and tells its task what changed.

use std::{
    net::Ipv4Addr,
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use crate::{
    health::{Check, Health, Readiness, SETTLE, Verdict},
    image_check::Asker,
    probe::{self, Failure},
};

/// A job that is stopped earlier was not waited for.
const EXCUSE_AFTER: Duration = Duration::from_secs(5);
/// The stop waits for this.
const EXCUSE_PATIENCE: Duration = Duration::from_millis(500);

/// What happened to the health of a job as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Up,
    /// Said once, some time after it came up: what it opened after its first port is open by now.
    StillUp,
    Unhealthy {
        is_to_be_killed: bool,
    },
    Never {
        why: String,
    },
}

/// The job whose health is watched.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    pub address: Ipv4Addr,
    pub pid: u32,
    /// A watcher before this one has seen it up.
    pub was_up: bool,
}

/// Runs until dropped, or until there is nothing left to watch.
pub async fn watch(subject: Subject, asker: Asker, readiness: Readiness, changes: mpsc::Sender<Change>) {
    let checks = match readiness {
        Readiness::Checks(checks) => checks,
        Readiness::Running | Readiness::Settled if subject.was_up => return,
        Readiness::Running => return drop(changes.send(Change::Up).await),
        Readiness::Settled => {
            tokio::time::sleep(SETTLE).await;
            return drop(changes.send(Change::Up).await);
        }
    };
    let whole = Mutex::new(Whole {
        ports: vec![subject.was_up; checks.len()],
        is_up: subject.was_up,
    });
    let ports = checks
        .iter()
        .enumerate()
        .map(|(index, check)| port(subject, &asker, index, check, &whole, &changes));
    futures::future::join_all(ports).await;
}

/// A job is up when all its ports are.
struct Whole {
    ports: Vec<bool>,
    is_up: bool,
}

impl Whole {
    fn hear(&mut self, port: usize, verdict: &Verdict) -> Option<Change> {
        self.ports[port] = *verdict == Verdict::Up;
        let is_up = self.ports.iter().all(|is_up| *is_up);
        if is_up == self.is_up {
            return None;
        }
        self.is_up = is_up;
        match verdict {
            Verdict::Unhealthy { is_to_be_killed } => Some(Change::Unhealthy {
                is_to_be_killed: *is_to_be_killed,
            }),
            _ => Some(Change::Up),
        }
    }
}

async fn port(
    subject: Subject,
    asker: &Asker,
    index: usize,
    check: &Check,
    whole: &Mutex<Whole>,
    changes: &mpsc::Sender<Change>,
) {
    let begin = Instant::now();
    let mut has_come_up = false;
    let mut health = Health::new(check, subject.was_up);
    loop {
        tokio::time::sleep(health.pause(begin.elapsed())).await;
        let result = asker.ask(subject, check).await;
        let is_ok = result.is_ok();
        let Some(verdict) = health.hear(is_ok, begin.elapsed()) else {
            if is_ok && std::mem::take(&mut has_come_up) && changes.send(Change::StillUp).await.is_err() {
                return;
            }
            continue;
        };
        has_come_up |= verdict == Verdict::Up;
        let change = match (&verdict, result) {
            (Verdict::Never, Err(failure)) => Some(Change::Never {
                why: why(subject.pid, check, &failure, begin.elapsed()),
            }),
            _ => whole
                .lock()
                .expect("nothing panics while it holds this")
                .hear(index, &verdict),
        };
        if let Some(change) = change
            && changes.send(change).await.is_err()
        {
            return;
        }
        if verdict == Verdict::Never {
            return;
        }
    }
}

/// Why a job that ran for `age` and was never up is not, for whoever stops it: the scheduler gives
/// up on jobs too, and does not see what we see. `None`: it has nothing to be asked, or was given no
/// time yet, or has just come up.
pub async fn excuse(subject: Subject, asker: Asker, readiness: Readiness, age: Duration) -> Option<String> {
    let Readiness::Checks(checks) = readiness else {
        return None;
    };
    if subject.was_up {
        return None;
    }
    for check in &checks {
        // The scheduler's clock may be a little ahead of the one here.
        let had_its_time = check
            .kill_after
            .map_or(EXCUSE_AFTER, |limit| limit.min(EXCUSE_AFTER) * 9 / 10);
        if age < had_its_time {
            continue;
        }
        let failure = match tokio::time::timeout(EXCUSE_PATIENCE, asker.ask(subject, check)).await {
            Ok(Ok(())) => continue,
            Ok(Err(failure)) => failure,
            Err(_) => Failure::NotOpen,
        };
        let listening = probe::listening(subject.pid).unwrap_or_default();
        return Some(probe::reason(check, &failure, &listening, age.as_secs()));
    }
    None
}

fn why(pid: u32, check: &Check, failure: &Failure, waited: Duration) -> String {
    let listening = probe::listening(pid).unwrap_or_default();
    let waited = check.kill_after.unwrap_or(waited);
    probe::reason(check, failure, &listening, waited.as_secs_f64().ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_up_when_all_its_ports_are() {
        let mut whole = Whole {
            ports: vec![false; 2],
            is_up: false,
        };
        let unhealthy = Verdict::Unhealthy {
            is_to_be_killed: false,
        };
        assert_eq!(whole.hear(0, &Verdict::Up), None);
        assert_eq!(whole.hear(1, &Verdict::Up), Some(Change::Up));
        assert_eq!(
            whole.hear(0, &unhealthy),
            Some(Change::Unhealthy {
                is_to_be_killed: false
            })
        );
        assert_eq!(whole.hear(1, &unhealthy), None);
        assert_eq!(whole.hear(0, &Verdict::Up), None);
        assert_eq!(whole.hear(1, &Verdict::Up), Some(Change::Up));
    }
}
