//! What must be true of every plan, whatever the world.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use scheduler::{Action, CALM_MIN, Cluster, META_MOVES, Plan, SILENCE_MAX, plan};
use types::*;

/// Knowing less never stops a job that serves on a host that lives: what a plan stops when some
/// hosts are not heard of, it would have stopped anyway. (When they have been silent for too long
/// they are known to be gone, and a deployment that only waited for them goes on.)
pub fn monotone(cluster: &Cluster, made: &Plan, now: Timestamp, random: u64) {
    let mut less = cluster.clone();
    let since = now - Duration::from_millis(random % 9000);
    for (n, id) in cluster.hosts.keys().enumerate() {
        let row = Arc::make_mut(less.hosts.get_mut(id).unwrap());
        if row.state == HostState::Up && (random >> (16 + n)) & 1 == 1 {
            row.state = HostState::Silent { since };
        }
    }
    let stopped = stops(made);
    let with_less = plan(&less, now);
    for id in stops(&with_less).difference(&stopped) {
        let job = &cluster.jobs[id];
        let is_living = job
            .host
            .as_ref()
            .and_then(|host| less.hosts.get(host))
            .is_some_and(|host| host.state == HostState::Up);
        let is_moving =
            since + SILENCE_MAX <= now && cluster.deployments.values().any(|row| row.app == job.app);
        assert!(
            is_moving || !(is_living && serves(job)),
            "{id} is stopped because less is known: {:?}\nall known:\n{made}less known:\n{with_less}",
            less.hosts
                .values()
                .map(|host| (&host.id, host.state))
                .collect::<Vec<_>>()
        );
    }
}

/// Nobody gets an empty volume while one of its kind is free, or is about to be, and nobody waits for it.
pub fn data_are_used(before: &Cluster, made: &Plan, after: &Cluster) {
    let placed = made.actions.iter().filter_map(|action| match action {
        Action::PlaceJob { job, new_volumes, .. } => Some((*job, new_volumes)),
        _ => None,
    });
    let lasting = placed
        .flat_map(|(_, new)| new)
        .filter(|volume| !volume.delete_on_stop);
    for new in lasting.filter(|new| !is_omni(before, new)) {
        let is_alike = |volume: &&Arc<Volume>| {
            volume.app == new.app
                && volume.job_type == new.job_type
                && volume.path == new.path
                && volume.is_usable()
                && after.hosts.contains_key(&volume.host_id)
        };
        let is_idle = |volume: &&Arc<Volume>| {
            let holder = volume.job.and_then(|job| after.jobs.get(&job));
            holder.is_none_or(|job| matches!(job.state, JobState::Down | JobState::Stopping))
        };
        let idle = after.volumes.values().filter(is_alike).filter(is_idle).count();
        let waits = |job: &&Arc<Job>| {
            Some(job.app) == new.app && job.process_type == new.job_type && job.state == JobState::Pending
        };
        let waiting = after.jobs.values().filter(waits).count();
        assert!(
            idle <= waiting,
            "{} is new while {idle} are idle and {waiting} wait",
            new.id
        );
    }
}

fn is_omni(cluster: &Cluster, volume: &Volume) -> bool {
    let release = volume.release.and_then(|release| cluster.releases.get(&release));
    release
        .and_then(|release| release.processes.get(&volume.job_type))
        .is_some_and(|process| process.omni)
}

/// What must be true after a plan was carried out.
pub fn hold(before: &Cluster, made: &Plan, after: &Cluster) {
    for job in after.jobs.values().filter(|job| job.state == JobState::Pending) {
        assert!(!job.waiting.is_empty(), "{} waits without a reason", job.id);
    }
    for (&(app, release), formation) in &after.formations {
        if after.apps.contains_key(&app) {
            for (name, process) in &after.releases[&release].processes {
                let count = formation.processes.get(name).copied().unwrap_or(0) as usize;
                let tags = formation.tags.get(name);
                counted(after, release, name, process, count, tags);
                keeps_what_serves(before, after, formation, name, process);
            }
        }
    }
    for deployment in before.deployments.values() {
        if before.apps.contains_key(&deployment.app) {
            takes_over_first(before, made, after, deployment);
        }
    }
}

fn counted(
    after: &Cluster,
    release: ReleaseId,
    name: &str,
    process: &ProcessType,
    count: usize,
    tags: Option<&BTreeMap<String, String>>,
) {
    let active: Vec<&Arc<Job>> = after
        .jobs
        .values()
        .filter(|job| {
            job.release == Some(release)
                && job.process_type == name
                && job.one_off.is_none()
                && job.is_active()
        })
        .collect();
    let has_tags = |host: &Host| {
        tags.is_none_or(|tags| tags.iter().all(|(key, value)| host.tags.get(key) == Some(value)))
    };
    let place = |job: &Job| {
        job.host
            .as_ref()
            .map_or(job.meta.get(scheduler::META_HOST).cloned(), |host| {
                Some(host.to_string())
            })
    };
    if process.omni {
        let places: Vec<String> = active.iter().filter_map(|job| place(job)).collect();
        let distinct: BTreeSet<&String> = places.iter().collect();
        assert_eq!(
            (places.len(), distinct.len()),
            (active.len(), active.len()),
            "two of an omni type on one host"
        );
        for host in after
            .hosts
            .values()
            .filter(|host| count > 0 && host.state == HostState::Up && !host.is_draining && has_tags(host))
        {
            assert!(
                distinct.contains(&host.id.to_string()),
                "host {} lacks {name}",
                host.id
            );
        }
        return;
    }
    // Data do not move, and so their jobs do not.
    let is_bound =
        |job: &Job| process.volumes.iter().any(|volume| !volume.delete_on_stop) && job.host.is_some();
    let is_placed_well = |job: &&&Arc<Job>| {
        is_bound(job)
            || job
                .host
                .as_ref()
                .and_then(|host| after.hosts.get(host))
                .is_none_or(|host| has_tags(host) && !host.is_draining)
    };
    let well = active.iter().filter(is_placed_well).count();
    // What is moved goes when the one that was started for it serves.
    let is_moved = |job: &&&Arc<Job>| active.iter().any(|mover| moved_by(mover) == Some(job.id));
    let moved = active.iter().filter(is_placed_well).filter(is_moved).count();
    assert!(
        well == count || (well > count && well <= count + moved),
        "{name} of {release} has another count than wanted: {well} instead of {count}, {moved} of them moved"
    );
}

fn moved_by(mover: &Job) -> Option<JobId> {
    mover.host.as_ref()?;
    mover.meta.get(META_MOVES)?.parse().ok()
}

/// What is moved serves, and goes from a host that has more of its type to one that has less and has been up
/// for long; no host gets two at a time.
pub fn moves_are_worth_it(before: &Cluster, made: &Plan, now: Timestamp) {
    let place_of = |id: JobId| {
        made.actions.iter().find_map(|action| match action {
            Action::PlaceJob { job, host, .. } if *job == id => Some(host.clone()),
            _ => None,
        })
    };
    let mut taken = BTreeSet::new();
    for job in before.jobs.values().filter(|job| job.state == JobState::Starting) {
        let moved = moved_by(job).and_then(|moved| before.jobs.get(&moved));
        if moved.is_some_and(|moved| moved.state == JobState::Up) {
            taken.insert(job.host.clone());
        }
    }
    for action in &made.actions {
        let Action::CreateJob { job, .. } = action else {
            continue;
        };
        let Some(moved) = job.meta.get(META_MOVES) else {
            continue;
        };
        let moved = &before.jobs[&moved.parse::<JobId>().unwrap()];
        let (from, to) = (moved.host.clone().unwrap(), place_of(job.id).expect("its place"));
        assert!(serves(moved), "{} is moved and does not serve", moved.id);
        let host = &before.hosts[&to];
        assert!(host.up_since + CALM_MIN <= now, "{to} has not been up for long");
        assert!(
            taken.insert(Some(to.clone())),
            "two jobs are moved to {to} at a time"
        );
        let on = |host: &HostId| {
            let alike = |other: &&Arc<Job>| {
                (other.release, &other.process_type) == (moved.release, &moved.process_type)
                    && other.host.as_ref() == Some(host)
                    && other.one_off.is_none()
                    && other.is_active()
            };
            before.jobs.values().filter(alike).count()
        };
        assert!(on(&from) > on(&to), "{} is moved from {from} to {to}", moved.id);
    }
}

/// What must be so when nothing has happened for long: no host has two more jobs of a type than another that
/// could have one of them.
pub fn even(cluster: &Cluster, formation: &Formation, name: &str, process: &ProcessType) {
    if process.omni || !process.volumes.is_empty() {
        return;
    }
    let tags = formation.tags.get(name);
    let has_tags = |host: &Host| {
        tags.is_none_or(|tags| tags.iter().all(|(key, value)| host.tags.get(key) == Some(value)))
    };
    let open = cluster
        .hosts
        .values()
        .filter(|host| !host.is_draining && has_tags(host));
    let counts: Vec<usize> = open
        .map(|host| {
            let on_it = |job: &&Arc<Job>| {
                is_of(job, formation.release, name) && job.is_active() && job.host.as_ref() == Some(&host.id)
            };
            cluster.jobs.values().filter(on_it).count()
        })
        .collect();
    let (most, least) = (counts.iter().max(), counts.iter().min());
    assert!(
        most.is_none() || most <= least.map(|least| least + 1).as_ref(),
        "{name} of {} is not even: {counts:?}",
        formation.release
    );
}

/// A formation that has what it is to have, or less, loses nothing that serves.
fn keeps_what_serves(
    before: &Cluster,
    after: &Cluster,
    formation: &Formation,
    name: &str,
    process: &ProcessType,
) {
    let count = formation.processes.get(name).copied().unwrap_or(0) as usize;
    let is_lost = |job: &Job| matches!(after.jobs[&job.id].exit, Some(Exit::Lost(_)));
    let is_ill = |job: &Job| after.jobs[&job.id].stop_reason == Some(StopReason::Unhealthy);
    let jobs = before
        .jobs
        .values()
        .filter(|job| is_of(job, formation.release, name) && serves(job));
    let had = jobs.filter(|job| !is_lost(job) && !is_ill(job)).count();
    let has = serving(after, formation.release, name);
    assert!(
        process.omni || has >= had.min(count),
        "{name} falls from {had} to {has} of {count}"
    );
}

/// While a release is replaced, the old one gives up no more than the new one has taken over (but
/// by the strategy whose point it is, and when the new one has failed).
fn takes_over_first(before: &Cluster, made: &Plan, after: &Cluster, deployment: &Deployment) {
    let has_failed = made.actions.iter().any(
        |action| matches!(action, Action::FailDeployment { deployment: id, .. } if *id == deployment.id),
    );
    let Some(old) = deployment.old_release else { return };
    if deployment.strategy == Strategy::OneDownOneUp || has_failed {
        return;
    }
    let target = made.actions.iter().find_map(|action| match action {
        Action::RetargetDeployment {
            deployment: id,
            processes,
        } if *id == deployment.id => Some(processes),
        _ => None,
    });
    let target = target.unwrap_or(&deployment.processes);
    let count = |cluster: &Cluster, name: &str| {
        let formation = cluster.formations.get(&(deployment.app, old));
        formation
            .and_then(|row| row.processes.get(name))
            .copied()
            .unwrap_or(0) as usize
    };
    for (name, process) in &before.releases[&deployment.new_release].processes {
        let (was, is) = (count(before, name), count(after, name));
        let wanted = target.get(name).copied().unwrap_or(0) as usize;
        let taken_over = serving(after, deployment.new_release, name);
        let has_data = |process: &ProcessType| process.volumes.iter().any(|volume| !volume.delete_on_stop);
        let of_old = before
            .releases
            .get(&old)
            .and_then(|release| release.processes.get(name));
        let hands_over = has_data(process) && of_old.is_some_and(has_data);
        let is_safe = process.omni || hands_over || is >= was || is + taken_over >= wanted;
        assert!(
            is_safe,
            "{name} of the old release goes from {was} to {is}, the new has {taken_over} of {wanted}"
        );
    }
}

fn is_of(job: &Job, release: ReleaseId, name: &str) -> bool {
    job.release == Some(release) && job.process_type == name && job.one_off.is_none()
}

fn serving(cluster: &Cluster, release: ReleaseId, name: &str) -> usize {
    cluster
        .jobs
        .values()
        .filter(|job| is_of(job, release, name) && serves(job))
        .count()
}

fn serves(job: &Job) -> bool {
    job.state == JobState::Up && !job.is_unhealthy
}

fn stops(plan: &Plan) -> BTreeSet<JobId> {
    let stop = |action: &Action| match action {
        Action::StopJob { job, .. } => Some(*job),
        _ => None,
    };
    plan.actions.iter().filter_map(stop).collect()
}
