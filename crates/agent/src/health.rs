//! When a job counts as up. A state machine over the results of checks, without a clock of its own.
//!
//! A job becomes up by its first good check, and unhealthy by `threshold` bad ones in a row; it
//! takes as many good ones to come back. Until it was up for the first time it is asked often,
//! since a deployment waits for exactly that.
//!
//! A job without ports has nothing to ask: a service counts as up once it has lived for
//! [`SETTLE`], so that a process that crashes at once (a missing module, a bad setting) never
//! replaces a good one; a one-off job is up when it runs.

use std::collections::BTreeSet;
use std::time::Duration;

use api::host::{HostJob, HostPort};
use types::{HealthCheck, ImageHealthcheck};

/// Interpreters report a missing module or setting within 50 to 300 ms on a machine of the size that
/// this is tested on; workers deployed one by one pay this time each.
pub const SETTLE: Duration = Duration::from_millis(500);

const INTERVAL: Duration = Duration::from_secs(2);
const THRESHOLD: i64 = 2;
/// The original's; used only where the check asks to be killed.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Docker's own, for checks of images.
const COMMAND_INTERVAL: Duration = Duration::from_secs(30);
const COMMAND_RETRIES: u32 = 3;
/// Each costs a process in the job.
const COMMAND_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest wait for an answer to one check.
const TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// What decides that a job is up.
#[derive(Debug, Clone, PartialEq)]
pub enum Readiness {
    /// As soon as it runs.
    Running,
    /// Once it has lived for [`SETTLE`].
    Settled,
    /// When all of these are healthy.
    Checks(Vec<Check>),
}

/// One port's check with every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    pub port: u16,
    pub probe: Probe,
    pub interval: Duration,
    pub timeout: Duration,
    pub threshold: u32,
    /// Stop the job when it does not become healthy in this time, or becomes unhealthy later.
    pub kill_after: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// The port takes connections.
    Tcp,
    Http {
        path: String,
        host: String,
        matches: String,
        status: u16,
    },
    /// A command in the job succeeds.
    Command { args: Vec<String> },
}

/// Ports with a service are checked. Where none has one the first port stands for the job: what
/// names a port means to listen on it.
pub fn readiness(job: &HostJob) -> Readiness {
    let is_tcp = |port: &&HostPort| port.port != 0 && !port.proto.eq_ignore_ascii_case("udp");
    let ports: Vec<&HostPort> = job.config.ports.iter().filter(is_tcp).collect();
    let served: Vec<&HostPort> = ports
        .iter()
        .copied()
        .filter(|port| port.service.is_some())
        .collect();
    let checked = if served.is_empty() {
        ports.into_iter().take(1).collect()
    } else {
        served
    };
    let mut checks: Vec<Check> = checked.into_iter().map(check_of).collect();
    checks.extend(job.config.healthcheck.as_ref().map(check_of_image));
    if !checks.is_empty() {
        return Readiness::Checks(checks);
    }
    if job.metadata.contains_key(HostJob::FORMATION) {
        Readiness::Settled
    } else {
        Readiness::Running
    }
}

/// What is asked whether it takes connections.
pub fn ports(readiness: &Readiness) -> BTreeSet<u16> {
    let Readiness::Checks(checks) = readiness else {
        return BTreeSet::new();
    };
    let is_port = |check: &&Check| !matches!(check.probe, Probe::Command { .. });
    checks.iter().filter(is_port).map(|check| check.port).collect()
}

fn check_of(port: &HostPort) -> Check {
    let default = HealthCheck::default();
    let check = port
        .service
        .as_ref()
        .and_then(|service| service.check.as_ref())
        .unwrap_or(&default);
    let duration = |nanos: i64, default| match u64::try_from(nanos) {
        Ok(nanos) if nanos > 0 => Duration::from_nanos(nanos),
        _ => default,
    };
    // Anything shorter would be a load of its own.
    let interval = duration(check.interval, INTERVAL).max(Duration::from_millis(50));
    let probe = match check.kind.as_str() {
        // TLS ends in the router; an app that speaks it itself is asked whether it listens.
        "http" => Probe::Http {
            path: if check.path.starts_with('/') {
                check.path.clone()
            } else {
                format!("/{}", check.path)
            },
            host: check.host.clone(),
            matches: check.matches.clone(),
            status: u16::try_from(check.status)
                .ok()
                .filter(|status| *status != 0)
                .unwrap_or(200),
        },
        _ => Probe::Tcp,
    };
    Check {
        port: port.port,
        probe,
        interval,
        timeout: TIMEOUT_MAX.min(interval.max(Duration::from_secs(1))),
        threshold: if check.threshold > 0 {
            check.threshold
        } else {
            THRESHOLD
        }
        .min(1000) as u32,
        kill_after: check
            .kill_down
            .then(|| duration(check.start_timeout, START_TIMEOUT)),
    }
}

/// What an image says, with Docker's defaults. As there, nothing is killed for it: a job that is not well
/// gets no requests until it is.
fn check_of_image(check: &ImageHealthcheck) -> Check {
    let duration = |nanos: i64, default| match u64::try_from(nanos) {
        Ok(nanos) if nanos > 0 => Duration::from_nanos(nanos),
        _ => default,
    };
    Check {
        port: 0,
        probe: Probe::Command {
            args: check.args.clone(),
        },
        interval: duration(check.interval, COMMAND_INTERVAL).max(COMMAND_PAUSE_MIN),
        timeout: duration(check.timeout, COMMAND_INTERVAL),
        threshold: match check.retries {
            retries if retries > 0 => retries.min(1000) as u32,
            _ => COMMAND_RETRIES,
        },
        kill_after: None,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Up,
    Unhealthy {
        is_to_be_killed: bool,
    },
    /// It had its time, and never was up.
    Never,
}

/// The health of one port.
#[derive(Debug)]
pub struct Health {
    /// Between two checks, however much one waits for the next.
    pause_min: Duration,
    threshold: u32,
    kill_after: Option<Duration>,
    interval: Duration,
    state: State,
    /// Results in a row that contradict the state.
    contrary: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Up,
    Unhealthy,
    Never,
}

impl Health {
    /// `was_up`: an agent before this one has seen it healthy.
    pub fn new(check: &Check, was_up: bool) -> Self {
        Health {
            pause_min: match check.probe {
                Probe::Command { .. } => COMMAND_PAUSE_MIN,
                Probe::Tcp | Probe::Http { .. } => Duration::ZERO,
            },
            threshold: check.threshold,
            kill_after: check.kill_after,
            interval: check.interval,
            state: if was_up { State::Up } else { State::New },
            contrary: 0,
        }
    }

    /// Takes the result of a check that ended `age` after the start; says what changed by it.
    pub fn hear(&mut self, is_healthy: bool, age: Duration) -> Option<Verdict> {
        match (self.state, is_healthy) {
            (State::New, true) => {
                self.state = State::Up;
                Some(Verdict::Up)
            }
            (State::New, false) if self.kill_after.is_some_and(|limit| age >= limit) => {
                self.state = State::Never;
                Some(Verdict::Never)
            }
            (State::Up, false) | (State::Unhealthy, true) => {
                self.contrary += 1;
                if self.contrary < self.threshold {
                    return None;
                }
                self.contrary = 0;
                if is_healthy {
                    self.state = State::Up;
                    return Some(Verdict::Up);
                }
                self.state = State::Unhealthy;
                Some(Verdict::Unhealthy {
                    is_to_be_killed: self.kill_after.is_some(),
                })
            }
            (State::Up, true) | (State::Unhealthy, false) => {
                self.contrary = 0;
                None
            }
            (State::New, false) | (State::Never, _) => None,
        }
    }

    /// How long to wait for the next check.
    pub fn pause(&self, age: Duration) -> Duration {
        if self.state != State::New {
            return self.interval;
        }
        // Connecting to a closed port over a veth costs both sides some 50 µs.
        let quick = match age.as_secs() {
            0 => Duration::from_millis(10),
            1..10 => Duration::from_millis(50),
            10..60 => Duration::from_millis(500),
            _ => self.interval,
        };
        match self.kill_after {
            // The last check comes when the time is over, not an interval later.
            Some(limit) if age < limit => quick.min(limit - age),
            _ => quick.min(self.interval).max(self.pause_min),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn job(ports: &str) -> HostJob {
        serde_json::from_str(&format!(
            r#"{{"id":"x","metadata":{{"flynn-controller.formation":"true"}},"config":{{"ports":{ports}}}}}"#
        ))
        .unwrap()
    }

    /// `+` is a good check, `-` a bad one, each a second after the one before.
    fn check(kill_down: bool, was_up: bool, results: &str, expected: &str) {
        let text = format!(
            r#"[{{"port":8080,"service":{{"check":{{"type":"tcp","kill_down":{kill_down},"start_timeout":{}}}}}}}]"#,
            3 * SECOND
        );
        let Readiness::Checks(checks) = readiness(&job(&text)) else {
            panic!("it has a port")
        };
        let mut health = Health::new(&checks[0], was_up);
        let said: Vec<String> = results
            .chars()
            .enumerate()
            .filter_map(|(second, result)| {
                let verdict = health.hear(result == '+', Duration::from_secs(second as u64 + 1))?;
                Some(format!("{}: {verdict:?}", second + 1))
            })
            .collect();
        assert_eq!(said.join(", "), expected);
    }

    #[test]
    fn the_first_good_check_makes_it_up() {
        check(false, false, "--+", "3: Up");
    }

    #[test]
    fn one_bad_check_changes_nothing_and_two_do() {
        check(false, false, "+-+-+", "1: Up");
        check(
            false,
            false,
            "+--+++",
            "1: Up, 3: Unhealthy { is_to_be_killed: false }, 5: Up",
        );
    }

    #[test]
    fn a_job_that_never_comes_up_is_given_up_only_if_asked_for() {
        check(false, false, "------", "");
        check(true, false, "------", "3: Never");
        check(true, false, "--+", "3: Up");
    }

    #[test]
    fn a_job_found_running_that_was_up_is_judged_as_one_that_is_up() {
        check(true, true, "+++--", "5: Unhealthy { is_to_be_killed: true }");
    }

    #[test]
    fn what_is_checked_follows_from_the_ports() {
        let ports = |text: &str| match readiness(&job(text)) {
            Readiness::Checks(checks) => checks.iter().map(|check| check.port).collect(),
            _ => vec![],
        };
        assert_eq!(
            ports(r#"[{"port":1,"proto":"tcp"},{"port":2,"proto":"tcp"}]"#),
            [1]
        );
        assert_eq!(ports(r#"[{"port":1},{"port":2,"service":{"name":"x"}}]"#), [2]);
        assert_eq!(ports(r#"[{"port":53,"proto":"udp"}]"#), [] as [u16; 0]);
        assert_eq!(readiness(&job("[]")), Readiness::Settled);
        assert_eq!(readiness(&HostJob::default()), Readiness::Running);
    }

    #[test]
    fn an_images_own_command_is_asked_beside_its_port_and_not_too_often() {
        let mut job = job("[]");
        job.config.healthcheck = Some(ImageHealthcheck {
            args: vec!["true".into()],
            interval: 5 * SECOND,
            ..ImageHealthcheck::default()
        });
        let Readiness::Checks(checks) = readiness(&job) else {
            panic!()
        };
        assert_eq!((checks.len(), checks[0].threshold), (1, 3));
        let mut health = Health::new(&checks[0], false);
        assert_eq!(health.pause(Duration::ZERO), Duration::from_secs(1));
        health.hear(true, Duration::from_secs(1));
        assert_eq!(health.pause(Duration::from_secs(1)), Duration::from_secs(5));
    }

    #[test]
    fn a_new_job_is_asked_often_and_once_more_when_its_time_is_over() {
        let text = r#"[{"port":1,"service":{"check":{"type":"http","kill_down":true}}}]"#;
        let Readiness::Checks(checks) = readiness(&job(text)) else {
            panic!()
        };
        let mut health = Health::new(&checks[0], false);
        assert_eq!(health.pause(Duration::ZERO), Duration::from_millis(10));
        assert_eq!(
            health.pause(Duration::from_millis(9_970)),
            Duration::from_millis(30)
        );
        health.hear(true, Duration::from_secs(1));
        assert_eq!(health.pause(Duration::from_secs(1)), INTERVAL);
    }
}
