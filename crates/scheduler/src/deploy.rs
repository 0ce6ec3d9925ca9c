//! How a new release takes over from an old one: by moving the counts of two formations.
//!
//! ```text
//! all-at-once           old 3 3 0    one-by-one, in-batches   old 3 3 2 2 1 1 0   one-down-one-up   old 3 2 2 1 1 0 0
//!                       new 0 3 3                             new 0 1 1 2 2 3 3                     new 0 0 1 1 2 2 3
//! ```
//!
//! Each step looks at the counts and jobs as they are and makes the next move that they allow, so a
//! deployment goes on after any interruption, and whatever users do to its formations meanwhile it
//! comes to its target: [`Deployment::processes`], which a scale request during the deployment
//! changes (for both ends: also a failed deployment ends with the counts that were asked for last).
//!
//! Old jobs are stopped only when new ones serve, except by one-down-one-up. What ends is drained by
//! the jobs' own stopping; a deployment that completes does not wait for it.
//!
//! A type whose volumes go on from one release to the next is replaced one job at a time, old ones
//! first, by every strategy: two releases cannot have one volume.
//!
//! Replicated databases (`sirenia`) are deployed one-by-one: the youngest jobs are stopped first, so
//! the primary, which is the oldest, goes last.

use std::collections::{BTreeMap, BTreeSet};

use types::{
    AppId, Deployment, DeploymentStatus, Formation, Job, JobState, ProcessType, Processes, Release,
    ReleaseId, ScaleRequest, ScaleRequestState, Strategy, Tags,
};

use crate::{
    Action, Wake, deploy_failure, diff,
    index::{Group, Index, Standing},
    surplus, volumes,
    wanted::{Want, Wanted},
};

/// Names the replicated process in the environment of a database's release; the original's.
const ENV_SIRENIA_PROCESS: &str = "SIRENIA_PROCESS";

/// Moves every app's deployment as far as it goes now. Returns the formations whose counts are
/// still on the way.
pub(crate) fn advance_all<'a>(
    index: &Index<'a>,
    wanted: &mut Wanted<'a>,
    wake: &mut Wake,
    actions: &mut Vec<Action>,
) -> BTreeSet<(AppId, ReleaseId)> {
    let unfinished = index
        .cluster
        .deployments
        .values()
        .filter(|deployment| !deployment.status.is_finished());
    let mut unfinished: Vec<&Deployment> = unfinished.map(|deployment| &**deployment).collect();
    unfinished.sort_by_key(|deployment| (deployment.created_at, deployment.id));
    let mut apps = BTreeSet::new();
    let mut deploying = BTreeSet::new();
    // One at a time per app; a later one waits for its turn.
    for deployment in unfinished
        .into_iter()
        .filter(|deployment| apps.insert(deployment.app))
    {
        if !advance(index, deployment, wanted, wake, actions) {
            deploying.insert((deployment.app, deployment.new_release));
            deploying.extend(deployment.old_release.map(|old| (deployment.app, old)));
        }
    }
    deploying
}

/// Returns whether the deployment has ended.
fn advance<'a>(
    index: &Index<'a>,
    deployment: &'a Deployment,
    wanted: &mut Wanted<'a>,
    wake: &mut Wake,
    actions: &mut Vec<Action>,
) -> bool {
    let cluster = index.cluster;
    let Some(app) = cluster.apps.get(&deployment.app) else {
        let error = "the app was deleted".to_owned();
        actions.push(Action::FailDeployment {
            deployment: deployment.id,
            error,
        });
        return true;
    };
    if deployment.status == DeploymentStatus::Pending {
        actions.push(Action::StartDeployment {
            deployment: deployment.id,
        });
    }
    let processes = retarget(index, deployment);
    if processes != deployment.processes {
        actions.push(Action::RetargetDeployment {
            deployment: deployment.id,
            processes: processes.clone(),
        });
    }
    let mut rollout = Rollout {
        index,
        deployment,
        processes,
        wanted,
        actions,
    };
    let Some(new) = cluster.releases.get(&deployment.new_release) else {
        return rollout.fail(format!(
            "release {} does not exist any more",
            deployment.new_release
        ));
    };
    if deployment.strategy == Strategy::Sirenia && sirenia_process(new).is_none() {
        return rollout.fail(format!(
            "the strategy sirenia is for replicated databases, and {} has no process named by \
             {ENV_SIRENIA_PROCESS}; use all-at-once, one-by-one, one-down-one-up or in-batches",
            app.name
        ));
    }
    let target: Processes = rollout.processes_of(new);
    if deployment.old_release != Some(deployment.new_release) {
        let started = target.iter().filter(|(_, count)| **count > 0);
        let started = started.filter_map(|(name, _)| new.processes.get_key_value(name));
        if let Some(error) = deploy_failure::find(index, deployment, started, wake) {
            return rollout.fail(error);
        }
    }
    let is_done = match deployment.strategy {
        Strategy::AllAtOnce => rollout.all_at_once(new, &target, wake),
        Strategy::OneByOne | Strategy::Sirenia | Strategy::DiscoverdMeta => {
            rollout.by_steps(new, &target, Order::UpFirst { batch: 1 }, wake)
        }
        Strategy::InBatches => {
            let up = index.hosts.iter().filter(|view| view.is_open()).count();
            let batch = deployment.deploy_batch_size.unwrap_or(up as u32).max(1);
            rollout.by_steps(new, &target, Order::UpFirst { batch }, wake)
        }
        Strategy::OneDownOneUp => rollout.by_steps(new, &target, Order::DownFirst, wake),
    };
    is_done && rollout.complete(target)
}

/// The counts to end with: a scale request made during the deployment changes those of the types
/// that it changed. Its other counts are only what it found in the middle of the deployment.
fn retarget(index: &Index, deployment: &Deployment) -> Processes {
    let concerns = |request: &&ScaleRequest| {
        request.state == ScaleRequestState::Pending
            && request.app == deployment.app
            && request.created_at >= deployment.created_at
            && (request.release == deployment.new_release || Some(request.release) == deployment.old_release)
    };
    let requests = index
        .cluster
        .scale_requests
        .values()
        .map(|request| &**request)
        .filter(concerns);
    let mut requests: Vec<&ScaleRequest> = requests.collect();
    requests.sort_by_key(|request| (request.created_at, request.id));
    let mut processes = deployment.processes.clone();
    for request in requests {
        let Some(asked) = &request.new_processes else {
            continue;
        };
        let names: BTreeSet<&String> = asked.keys().chain(request.old_processes.keys()).collect();
        for name in names {
            let count = |processes: &Processes| processes.get(name).copied().unwrap_or(0);
            if count(asked) != count(&request.old_processes) {
                processes.insert(name.clone(), count(asked));
            }
        }
    }
    processes
}

fn sirenia_process(release: &Release) -> Option<&ProcessType> {
    release.processes.get(release.env.get(ENV_SIRENIA_PROCESS)?)
}

#[derive(Clone, Copy)]
enum Order {
    UpFirst { batch: u32 },
    DownFirst,
}

/// A deployment under way, and what it writes to.
struct Rollout<'x, 'a> {
    index: &'x Index<'a>,
    deployment: &'a Deployment,
    processes: Processes,
    wanted: &'x mut Wanted<'a>,
    actions: &'x mut Vec<Action>,
}

impl<'a> Rollout<'_, 'a> {
    fn all_at_once(&mut self, new: &'a Release, target: &Processes, wake: &mut Wake) -> bool {
        let (handed_over, at_once): (Processes, Processes) = target
            .iter()
            .map(|(name, count)| (name.clone(), *count))
            .partition(|(name, _)| self.hands_over(new, name));
        let mut counts = self.counts(Some(new.id));
        counts.retain(|name, _| handed_over.contains_key(name));
        counts.extend(at_once.clone());
        self.set_counts(new.id, counts);
        let mut is_ready = true;
        for (name, count) in &at_once {
            is_ready &= self.is_ready(new, name, *count, wake);
        }
        is_ready && (handed_over.is_empty() || self.by_steps(new, &handed_over, Order::DownFirst, wake))
    }

    /// Whether jobs of the new release take over volumes of a type's old ones.
    fn hands_over(&self, new: &Release, name: &str) -> bool {
        let releases = &self.index.cluster.releases;
        let old = self.deployment.old_release.filter(|old| *old != new.id);
        let old = old.and_then(|old| releases.get(&old)?.processes.get(name));
        let (Some(old), Some(new)) = (old, new.processes.get(name)) else {
            return false;
        };
        volumes::lasting_paths(new).any(|path| volumes::lasting_paths(old).any(|of_old| of_old == path))
    }

    fn by_steps(&mut self, new: &'a Release, target: &Processes, order: Order, wake: &mut Wake) -> bool {
        let mut counts_new = self.counts(Some(new.id));
        let mut counts_old = self.counts(self.deployment.old_release);
        let mut is_done = true;
        for (name, count) in target {
            let mut at = (
                counts_new.get(name).copied().unwrap_or(0),
                counts_old.get(name).copied().unwrap_or(0),
            );
            let order = match self.hands_over(new, name) {
                true => Order::DownFirst,
                false => order,
            };
            is_done = self.step_type(new, name, *count, order, &mut at, wake);
            if at.0 > 0 || counts_new.contains_key(name) {
                counts_new.insert(name.clone(), at.0);
            }
            if counts_old.contains_key(name) {
                counts_old.insert(name.clone(), at.1);
            }
            if !is_done {
                break;
            }
        }
        self.set_counts(new.id, counts_new);
        if let Some(old) = self.deployment.old_release {
            self.set_counts(old, counts_old);
        }
        is_done
    }

    /// Moves one type's counts (new, old) as far as its jobs allow; returns whether it is done.
    fn step_type(
        &self,
        release: &'a Release,
        name: &str,
        count: u32,
        order: Order,
        (new, old): &mut (u32, u32),
        wake: &mut Wake,
    ) -> bool {
        let Some((name, process)) = release.processes.get_key_value(name) else {
            return true;
        };
        let is_omni = process.omni;
        let count = if is_omni { count.min(1) } else { count };
        let group_old = self
            .deployment
            .old_release
            .and_then(|old| self.index.group(self.deployment.app, old, name));
        let old_is_stopping = group_old.is_some_and(|group| !group.stopping.is_empty());
        *new = (*new).min(count);
        loop {
            let room = count - *new;
            let (is_old_next, old_next) = match order {
                Order::UpFirst { .. } => (*old > room, room),
                Order::DownFirst => (*old > 0 && *old >= room, room.saturating_sub(1)),
            };
            if is_old_next {
                if !self.is_ready(release, name, *new, wake) {
                    return false;
                }
                *old = old_next;
                // What is only pending is gone as soon as it is stopped; what runs is waited for, but
                // for the last: nothing comes after it.
                let is_last = *old == 0 && *new == count;
                if !is_last && group_old.is_some_and(|group| self.ends_what_runs(group, name, *old)) {
                    return false;
                }
            } else if *new < count {
                if old_is_stopping || !self.is_ready(release, name, *new, wake) {
                    return false;
                }
                *new = match order {
                    Order::UpFirst { batch } => count.min(new.saturating_add(batch)),
                    Order::DownFirst => count - *old,
                };
            } else {
                return self.is_ready(release, name, *new, wake);
            }
        }
    }

    /// Whether fewer of the old release mean that some of its jobs have to end, which takes time.
    fn ends_what_runs(&self, group: &Group<'a>, name: &str, count: u32) -> bool {
        let runs = |job: &&Job| job.state != JobState::Pending;
        let releases = &self.index.cluster.releases;
        let old = self.deployment.old_release.and_then(|old| releases.get(&old));
        let Some((old, process)) = old.and_then(|old| Some((old, old.processes.get(name)?))) else {
            return group.active.iter().any(runs);
        };
        if count == 0 || process.omni {
            return count == 0 && group.active.iter().any(runs);
        }
        let formation = self.wanted.formation(self.deployment.app, old.id);
        let tags = formation.and_then(|formation| formation.tags.get(name));
        let want = Want {
            count,
            process,
            tags: tags.filter(|tags| !tags.is_empty()),
            since: self.index.now,
        };
        let (unwanted, _) = diff::compare_counted(self.index, group.active.clone(), &want);
        unwanted.iter().any(runs)
    }

    /// Whether the new release's jobs of a type serve, as many as `count` says. Hosts that have
    /// just gone silent hold an omni type up: they are back or gone soon.
    fn is_ready(&self, release: &'a Release, name: &str, count: u32, wake: &mut Wake) -> bool {
        let Some(process) = release.processes.get(name).filter(|_| count > 0) else {
            return true;
        };
        let group = self.index.group(self.deployment.app, release.id, name);
        let jobs = group.into_iter().flat_map(|group| &group.active);
        let mut serving = 0;
        let mut hosts_served = BTreeSet::new();
        for job in jobs.filter(|job| surplus::serves(self.index, job)) {
            if surplus::is_steady(process, job, wake) {
                serving += 1;
                hosts_served.extend(self.index.host_position(job));
            }
        }
        if !process.omni {
            return serving >= count;
        }
        let formation = self.wanted.formation(self.deployment.app, release.id);
        let tags = formation
            .map_or(&self.deployment.tags, |formation| &formation.tags)
            .get(name);
        let mut hosts = (0..)
            .zip(&self.index.hosts)
            .filter(|(_, view)| view.standing != Standing::Gone && !view.host.is_draining);
        hosts.all(|(at, view)| hosts_served.contains(&at) || !view.has(tags))
    }

    fn complete(&mut self, target: Processes) -> bool {
        let Deployment {
            id,
            app,
            new_release,
            old_release,
            ..
        } = *self.deployment;
        self.set_counts(new_release, target);
        if let Some(old) = old_release.filter(|old| *old != new_release) {
            self.delete(old);
        }
        if self
            .index
            .cluster
            .apps
            .get(&app)
            .is_some_and(|app| app.release != Some(new_release))
        {
            self.actions.push(Action::SetAppRelease {
                app,
                release: new_release,
            });
        }
        self.actions.push(Action::CompleteDeployment { deployment: id });
        true
    }

    /// Back to what was: the old release with its counts, nothing of the new one.
    fn fail(&mut self, error: String) -> bool {
        let Deployment {
            id,
            new_release,
            old_release,
            ..
        } = *self.deployment;
        if let Some(old) = old_release.and_then(|old| self.index.cluster.releases.get(&old)) {
            self.set_counts(old.id, self.processes_of(old));
        }
        if old_release != Some(new_release) {
            self.delete(new_release);
        }
        self.actions.push(Action::FailDeployment {
            deployment: id,
            error,
        });
        true
    }

    /// The target counts of the types that `release` has.
    fn processes_of(&self, release: &Release) -> Processes {
        let has = |name: &&String| release.processes.contains_key(*name);
        self.processes
            .iter()
            .filter(|(name, _)| has(name))
            .map(|(name, count)| (name.clone(), *count))
            .collect()
    }

    fn counts(&self, release: Option<ReleaseId>) -> Processes {
        let formation = release.and_then(|release| self.wanted.formation(self.deployment.app, release));
        formation.map_or_else(BTreeMap::new, |formation| formation.processes.clone())
    }

    fn set_counts(&mut self, release: ReleaseId, processes: Processes) {
        let app = self.deployment.app;
        let is_something = |(_, count): &(&String, &u32)| **count > 0;
        let current = self.counts(Some(release));
        if current
            .iter()
            .filter(is_something)
            .eq(processes.iter().filter(is_something))
        {
            return;
        }
        let formation = match self.wanted.formation(app, release) {
            Some(formation) => Formation {
                processes,
                updated_at: self.index.now,
                ..formation.clone()
            },
            None => {
                let tags: Tags = self.deployment.tags.clone();
                Formation {
                    app,
                    release,
                    processes,
                    tags,
                    created_at: self.index.now,
                    updated_at: self.index.now,
                }
            }
        };
        self.wanted.set(formation.clone());
        self.actions.push(Action::SetFormation { formation });
    }

    fn delete(&mut self, release: ReleaseId) {
        let app = self.deployment.app;
        if self.wanted.formation(app, release).is_some() {
            self.wanted.delete(app, release);
            self.actions.push(Action::DeleteFormation { app, release });
        }
    }
}
