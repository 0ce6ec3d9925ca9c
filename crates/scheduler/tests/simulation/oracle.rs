//! Where jobs should go, found the slow way: every host is compared for every job.

use std::collections::BTreeMap;

use scheduler::{Action, Cluster, MEMORY_UNDECLARED_BYTES, META_HOST, META_MOVES, Plan};
use types::*;

#[derive(Default, Clone)]
struct Taken {
    memory: i64,
    cpu: i64,
}

fn needs(cluster: &Cluster, job: &Job) -> Taken {
    let process = job
        .release
        .and_then(|release| cluster.releases.get(&release)?.processes.get(&job.process_type));
    let resources = process
        .map(|process| process.resources.clone())
        .unwrap_or_default();
    let memory = resources.request("memory");
    let memory = if memory == 1 << 30 {
        MEMORY_UNDECLARED_BYTES
    } else {
        memory
    };
    Taken {
        memory,
        cpu: resources.request("cpu"),
    }
}

/// Each placement is on a host that may take the job, and on the best of those.
pub fn placements(before: &Cluster, made: &Plan) {
    let mut taken: BTreeMap<HostId, Taken> = BTreeMap::new();
    let mut jobs: BTreeMap<JobId, Job> = BTreeMap::new();
    for job in before.jobs.values().filter(|job| job.state != JobState::Down) {
        jobs.insert(job.id, Job::clone(job));
        if let Some(host) = &job.host {
            add(&mut taken, host, needs(before, job));
        }
    }
    let mut formations = before.formations.clone();
    for action in &made.actions {
        match action {
            Action::SetFormation { formation } => {
                formations.insert((formation.app, formation.release), formation.clone().into());
            }
            Action::CreateJob { job, .. } => drop(jobs.insert(job.id, job.clone())),
            Action::PlaceJob {
                job,
                host,
                volumes,
                new_volumes,
                ..
            } => {
                let row = jobs[job].clone();
                let need = needs(before, &row);
                let formation = row
                    .release
                    .and_then(|release| formations.get(&(row.app, release)));
                let tags = formation.and_then(|formation| formation.tags.get(&row.process_type));
                let tags = tags.filter(|_| row.one_off.is_none());
                let can_take = |candidate: &&Host| {
                    let free =
                        candidate.memory_bytes - taken.get(&candidate.id).map_or(0, |taken| taken.memory);
                    let has_tags =
                        tags.is_none_or(|tags| tags.iter().all(|(k, v)| candidate.tags.get(k) == Some(v)));
                    let is_asked_for = row
                        .meta
                        .get(META_HOST)
                        .is_none_or(|host| *host == candidate.id.to_string());
                    candidate.state == HostState::Up && has_tags && is_asked_for && free >= need.memory
                };
                let key = |candidate: &&Host| {
                    let same = jobs.values().filter(|other| {
                        other.host.as_ref() == Some(&candidate.id)
                            && row.one_off.is_none()
                            && other.one_off.is_none()
                            && other.is_active()
                            && (other.app, other.release, &other.process_type)
                                == (row.app, row.release, &row.process_type)
                    });
                    let taken = taken.get(&candidate.id).cloned().unwrap_or_default();
                    let part = |taken: i64, of: i64| taken as i128 * 1_000_000 / of as i128;
                    let load =
                        part(taken.cpu, candidate.cpu_milli) + part(taken.memory, candidate.memory_bytes);
                    (same.count(), load, candidate.id.clone())
                };
                let best = before
                    .hosts
                    .values()
                    .map(|host| &**host)
                    .filter(can_take)
                    .filter(|candidate| !candidate.is_draining)
                    .min_by_key(key);
                // Where data are already, there is no choice; and what is moved goes by laws of its own.
                if volumes.len() > new_volumes.len() || row.meta.contains_key(META_MOVES) {
                    let chosen = before.hosts.get(host).map(|host| &**host);
                    assert!(chosen.as_ref().is_some_and(can_take), "the place of {job}");
                } else {
                    assert_eq!(best.map(|best| &best.id), Some(host), "the place of {job}");
                }
                add(&mut taken, host, need);
                jobs.get_mut(job).unwrap().host = Some(host.clone());
            }
            _ => {}
        }
    }
}

fn add(taken: &mut BTreeMap<HostId, Taken>, host: &HostId, need: Taken) {
    let entry = taken.entry(host.clone()).or_default();
    entry.memory += need.memory;
    entry.cpu += need.cpu;
}
