//! Why an app or a job is as it is: the chain of causes, from what the controller knows.
//!
//! [`app`] and [`job`] are pure: all that they go by is in [`Facts`], the time included. They name
//! causes that can be read off the rows; what a program got wrong is in the lines that it wrote last,
//! which are quoted.
//!
//! ```text
//! shop is down: none of its 2 jobs is up                  the answer
//!   0 of 2 web jobs are up                                why
//!     host0-… ended 12 seconds ago: exited with status 1  why that
//!       | Error: Cannot find module 'express'             in its own words
//! hint: …                                                 what can be done
//! ```

mod jobs;
mod routes;

use std::collections::{BTreeMap, BTreeSet};

use api::wire::{Job, RouteView};
use serde::Serialize;
use types::{
    App, Deployment, DeploymentStatus, Formation, Host, HostState, JobId, JobState, ProcessType, Release,
    Timestamp,
};

use self::jobs::{is_crash, of_job, predecessor, what_followed};
use crate::output;

/// Ended jobs of one type that are told about: the others ended in the same way, as a rule.
const CRASHES_SHOWN_MAX: usize = 2;

pub struct Facts {
    pub now: Timestamp,
    pub app: App,
    /// The current one.
    pub release: Option<Release>,
    /// Of the current release.
    pub formation: Option<Formation>,
    /// Newest first.
    pub jobs: Vec<Job>,
    /// Newest first.
    pub deployments: Vec<Deployment>,
    pub routes: Vec<RouteView>,
    pub hosts: Vec<Host>,
    /// The last lines of some jobs.
    pub logs: BTreeMap<JobId, Vec<String>>,
    /// The cluster's domain, for names below which it has a certificate; empty if it is not known.
    pub domain: String,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cause {
    pub what: String,
    /// Lines that a job wrote.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub quoted: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl Cause {
    fn new(what: impl Into<String>) -> Cause {
        Cause {
            what: what.into(),
            ..Cause::default()
        }
    }

    fn with_hint(mut self, hint: impl Into<String>) -> Cause {
        self.hint = hint.into();
        self
    }

    fn because(mut self, causes: impl IntoIterator<Item = Cause>) -> Cause {
        self.causes.extend(causes);
        self
    }

    /// As it is printed, with its last newline.
    pub fn render(&self) -> String {
        let (mut text, mut hints) = (String::new(), vec![]);
        self.render_into(0, &mut text, &mut hints);
        let mut seen = BTreeSet::new();
        for hint in hints.into_iter().filter(|hint| seen.insert(*hint)) {
            text.push_str(&format!("hint: {hint}\n"));
        }
        text
    }

    fn render_into<'a>(&'a self, depth: usize, text: &mut String, hints: &mut Vec<&'a str>) {
        let indent = "  ".repeat(depth);
        text.push_str(&format!("{indent}{}\n", self.what));
        for line in &self.quoted {
            text.push_str(&format!("{indent}  | {line}\n"));
        }
        if !self.hint.is_empty() {
            hints.push(&self.hint);
        }
        for cause in &self.causes {
            cause.render_into(depth + 1, text, hints);
        }
    }
}

/// Jobs whose last lines would tell something: those that ended by themselves, and those that do not
/// come up.
pub fn worth_reading(jobs: &[Job]) -> Vec<JobId> {
    let tells = |job: &&Job| is_crash(job) || job.state == JobState::Starting;
    let mut of_type: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ids = vec![];
    for job in jobs.iter().filter(tells) {
        let count = of_type.entry(&job.process_type).or_default();
        *count += 1;
        if *count <= CRASHES_SHOWN_MAX {
            ids.push(job.uuid);
        }
    }
    ids
}

/// Why the app is up, or is not.
pub fn app(facts: &Facts) -> Cause {
    let name = &facts.app.name;
    let Some(release) = &facts.release else {
        return Cause::new(format!("{name} runs nothing: it was never deployed"))
            .because(last_deployment(facts))
            .with_hint("deploy it: `git push flynn main`");
    };
    let types: Vec<Standing> = release
        .processes
        .iter()
        .map(|(name, process)| Standing::of(facts, release, name, process))
        .collect();
    let wanted: u32 = types.iter().map(|standing| standing.wanted).sum();
    let up: u32 = types
        .iter()
        .map(|standing| standing.up.min(standing.wanted))
        .sum();
    let mut causes: Vec<Cause> = last_deployment(facts).into_iter().collect();
    if wanted > 0 {
        causes.extend(types.iter().filter_map(|standing| standing.cause(facts)));
    }
    causes.extend(routes::causes(facts, &types));
    if up < wanted {
        causes.extend(silent_hosts(facts));
    }
    let answer = match () {
        () if release.processes.is_empty() => {
            return Cause::new(format!("{name} runs nothing: its release has no process types"))
                .because(causes)
                .with_hint("its code was not deployed yet: `git push flynn main`");
        }
        () if wanted == 0 => {
            let first = types
                .iter()
                .find(|standing| standing.name == "web")
                .unwrap_or(&types[0]);
            return Cause::new(format!("{name} is down: it is scaled to nothing"))
                .because(causes)
                .with_hint(format!("start it: `flynn -a {name} scale {}=1`", first.name));
        }
        () if up == wanted => format!("{name} is up: {}", counts(&types)),
        () if up == 0 => format!("{name} is down: {}", none_of(wanted)),
        () => format!(
            "{name} is up in part: {up} of {} up",
            number(wanted, "job is", "jobs are")
        ),
    };
    Cause::new(answer).because(causes)
}

/// Why the job is as it is.
pub fn job(facts: &Facts, job: &Job) -> Cause {
    let mut cause = of_job(facts, job);
    if job.state == JobState::Pending {
        if let Some(before) = predecessor(facts, job) {
            cause.causes.push(of_job(facts, before));
        }
        cause.causes.extend(silent_hosts(facts));
    }
    if job.state == JobState::Down {
        cause.causes.extend(what_followed(facts, job));
    }
    cause
}

/// How one process type stands: what is wanted of it, and what there is.
struct Standing<'a> {
    name: &'a str,
    process: &'a ProcessType,
    wanted: u32,
    up: u32,
    jobs: Vec<&'a Job>,
}

impl<'a> Standing<'a> {
    fn of(facts: &'a Facts, release: &'a Release, name: &'a str, process: &'a ProcessType) -> Self {
        let count = facts
            .formation
            .as_ref()
            .and_then(|formation| formation.processes.get(name))
            .copied()
            .unwrap_or(0);
        let hosts = facts
            .hosts
            .iter()
            .filter(|host| host.state == HostState::Up)
            .count() as u32;
        let is_of_type = |job: &&Job| job.process_type == name && job.release == Some(release.id);
        let jobs: Vec<&Job> = facts.jobs.iter().filter(is_of_type).collect();
        Standing {
            name,
            process,
            wanted: if process.omni && count > 0 { hosts } else { count },
            up: jobs.iter().filter(|job| job.state == JobState::Up).count() as u32,
            jobs,
        }
    }

    /// Names under which routes find it.
    fn services(&self, app: &str) -> BTreeSet<String> {
        let named = |port: &types::Port| {
            let own = port.service.as_ref().map(|service| service.name.clone());
            let name = own.filter(|name| !name.is_empty());
            let of_type = Some(self.process.service.clone()).filter(|name| !name.is_empty());
            name.or(of_type).unwrap_or_else(|| format!("{app}-{}", self.name))
        };
        self.process.ports.iter().map(named).collect()
    }

    /// Why there are too few of it.
    fn cause(&self, facts: &Facts) -> Option<Cause> {
        let app = &facts.app.name;
        if self.wanted == 0 {
            let services = self.services(app);
            let is_routed = facts
                .routes
                .iter()
                .any(|view| services.contains(&view.route.service));
            let hint = format!("start it: `flynn -a {app} scale {}=1`", self.name);
            return is_routed.then(|| Cause::new(format!("{} is scaled to 0", self.name)).with_hint(hint));
        }
        if self.up >= self.wanted {
            return None;
        }
        let what = format!(
            "{} of {} up",
            self.up,
            number(
                self.wanted,
                &format!("{} job is", self.name),
                &format!("{} jobs are", self.name)
            )
        );
        let moving = self.jobs.iter().filter(|job| {
            matches!(
                job.state,
                JobState::Pending | JobState::Starting | JobState::Stopping
            )
        });
        let mut causes = merged(moving.map(|job| of_job(facts, job)).collect());
        let crashed: Vec<&&Job> = self.jobs.iter().filter(|job| is_crash(job)).collect();
        causes.extend(
            crashed
                .iter()
                .take(CRASHES_SHOWN_MAX)
                .map(|job| of_job(facts, job)),
        );
        if let Some(more) = crashed
            .len()
            .checked_sub(CRASHES_SHOWN_MAX)
            .filter(|more| *more > 0)
        {
            causes.push(Cause::new(format!("{more} more before that")));
        }
        if causes.is_empty() {
            causes.push(Cause::new("no job of it exists yet").with_hint(
                "the cluster plans again within a second; if it stays so, `flynn-host` has the cluster's log",
            ));
        }
        Some(Cause::new(what).because(causes))
    }
}

fn counts(types: &[Standing]) -> String {
    let running = types.iter().filter(|standing| standing.wanted > 0);
    let counts: Vec<String> = running
        .map(|standing| format!("{}={}", standing.name, standing.up))
        .collect();
    counts.join(" ")
}

fn none_of(wanted: u32) -> String {
    match wanted {
        1 => "its job is not up".into(),
        _ => format!("none of its {wanted} jobs is up"),
    }
}

fn number(count: u32, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// Several jobs that wait for the same are one cause.
fn merged(causes: Vec<Cause>) -> Vec<Cause> {
    let mut merged: Vec<(Cause, usize, String)> = vec![];
    for cause in causes {
        let reason = cause
            .what
            .split_once(' ')
            .map_or(String::new(), |(_, rest)| rest.to_owned());
        let is_alike = cause.quoted.is_empty() && cause.causes.is_empty();
        match merged
            .iter_mut()
            .find(|(_, _, known)| is_alike && *known == reason)
        {
            Some((_, count, _)) => *count += 1,
            None => merged.push((cause, 1, reason)),
        }
    }
    merged
        .into_iter()
        .map(|(mut cause, count, _)| {
            if count > 1 {
                cause.what.push_str(&format!("; so do {} more", count - 1));
            }
            cause
        })
        .collect()
}

/// The last deployment, where it is under way or did not get through.
fn last_deployment(facts: &Facts) -> Option<Cause> {
    let deployment = facts.deployments.first()?;
    let release = deployment.new_release;
    match deployment.status {
        DeploymentStatus::Complete => None,
        DeploymentStatus::Pending | DeploymentStatus::Running => {
            let lasting = output::lasting(facts.now, deployment.created_at);
            let of_new = |job: &&Job| job.release == Some(release) && job.state != JobState::Down;
            let new: Vec<&Job> = facts.jobs.iter().filter(of_new).collect();
            let up = new.iter().filter(|job| job.state == JobState::Up).count();
            let rest = new.iter().filter(|job| job.state != JobState::Up);
            let causes = merged(rest.map(|job| of_job(facts, job)).collect());
            let what =
                format!("release {release} has been under deployment for {lasting}: {up} of its jobs are up");
            Some(Cause::new(what).because(causes))
        }
        DeploymentStatus::Failed => {
            let ended = deployment.finished_at.unwrap_or(deployment.created_at);
            let mut lines = deployment.error.lines();
            let reason = lines
                .next()
                .filter(|line| !line.is_empty())
                .unwrap_or("no reason is known");
            let quoted = lines.map(|line| line.trim_start().to_owned()).collect();
            let runs = facts.release.as_ref().map_or(String::new(), |current| {
                format!(
                    "; release {}, which was there before it, is the current one",
                    current.id
                )
            });
            let what = format!(
                "the deployment of release {release} failed {} ago: {reason}{runs}",
                output::lasting(facts.now, ended)
            );
            let cause = Cause {
                quoted,
                ..Cause::new(what)
            };
            Some(cause.with_hint("mend its cause, then push again, or make the change again"))
        }
    }
}

fn silent_hosts(facts: &Facts) -> impl Iterator<Item = Cause> {
    facts.hosts.iter().filter_map(|host| match host.state {
        HostState::Up => None,
        HostState::Silent { since } => Some(Cause::new(format!(
            "{} has not answered since {}: nothing is started there",
            host.id,
            output::clock(since)
        ))),
    })
}

#[cfg(test)]
mod tests;
