//! What one host is to run: all of it first, then every change.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use api::{
    host::{Assignment, HostJob, HostVolume},
    sse,
};
use bytes::Bytes;
use state::State;
use types::{HostId, Job, JobId, JobState, Volume, VolumeId, VolumeState};

use crate::{
    Controller, host_job,
    network_map::{self, NetworkMap},
};

/// What a host was last told of a job.
#[derive(Debug, Clone, PartialEq)]
enum Told {
    Run(Box<HostJob>),
    Drain,
    Stop,
}

/// The host's jobs. What a running job runs never changes, so it is made once.
fn wanted(state: &State, jobs: &[Arc<Job>], told: &BTreeMap<JobId, Told>) -> BTreeMap<JobId, Told> {
    jobs.iter()
        .filter_map(|job| Some((job.id, tell(state, job, told.get(&job.id))?)))
        .collect()
}

fn tell(state: &State, job: &Job, before: Option<&Told>) -> Option<Told> {
    match (job.state, before) {
        (JobState::Stopping, _) if job.is_drained => Some(Told::Stop),
        (JobState::Stopping, _) => Some(Told::Drain),
        (_, Some(run @ Told::Run(_))) => Some(run.clone()),
        _ => host_job::host_job(state, job).map(Box::new).map(Told::Run),
    }
}

/// The host's volumes that have to be made or removed.
fn volumes(state: &State, host: &HostId) -> BTreeMap<VolumeId, VolumeState> {
    let to_do = state
        .volumes
        .values()
        .filter(|volume| volume.host_id == *host && volume.state != VolumeState::Created);
    to_do.map(|volume| (volume.id, volume.state)).collect()
}

fn tell_volume(state: &State, volume: &Volume) -> Assignment {
    let mut meta = volume.meta.clone();
    let app = volume.app.and_then(|app| state.apps.get(&app));
    let about = [
        (HostJob::APP, volume.app.map(|app| app.to_string())),
        (HostJob::APP_NAME, app.map(|app| app.name.clone())),
        (HostJob::TYPE, Some(volume.job_type.clone())),
        (HostVolume::PATH, Some(volume.path.clone())),
    ];
    for (key, value) in about {
        let value = value.filter(|value| !value.is_empty());
        meta.extend(value.map(|value| (key.to_owned(), value)));
    }
    Assignment::Volume {
        volume: HostVolume {
            id: volume.id,
            state: volume.state,
            meta,
            created_at: volume.created_at,
        },
    }
}

/// Messages that bring a host from what it was told to what is wanted now.
fn changes(before: &BTreeMap<JobId, Told>, now: &BTreeMap<JobId, Told>) -> Vec<Assignment> {
    let changed = now.iter().filter(|(job, told)| before.get(job) != Some(told));
    let changed = changed.map(|(job, told)| match told {
        Told::Run(host_job) => Assignment::Run {
            job: host_job.clone(),
        },
        Told::Drain => Assignment::Drain { job: *job },
        Told::Stop => Assignment::Stop { job: *job },
    });
    // A row that is gone, or that ended without the host saying so, must not run on.
    let gone = before
        .keys()
        .filter(|job| !now.contains_key(job))
        .map(|job| Assignment::Stop { job: *job });
    changed.chain(gone).collect()
}

pub fn follow(controller: Controller, host: HostId) -> impl futures::Stream<Item = Bytes> + Send {
    let wakes = controller.changes();
    let state = (
        controller,
        host,
        wakes,
        (BTreeMap::new(), BTreeMap::new(), NetworkMap::default()),
        VecDeque::<Bytes>::new(),
        true,
    );
    futures::stream::unfold(
        state,
        |(
            controller,
            host,
            mut wakes,
            (mut told, mut told_volumes, mut told_network),
            mut ready,
            mut is_first,
        )| async move {
            loop {
                if let Some(message) = ready.pop_front() {
                    let told = (told, told_volumes, told_network);
                    return Some((message, (controller, host, wakes, told, ready, is_first)));
                }
                wakes.borrow_and_update();
                let state = controller.state();
                // Volumes first: a job that is begun finds what is to be there.
                let to_do = volumes(&state, &host);
                let news = to_do
                    .iter()
                    .filter(|(id, state)| told_volumes.get(*id) != Some(*state));
                let news = news.filter_map(|(id, _)| state.volumes.get(id));
                ready.extend(news.map(|volume| sse::message(&tell_volume(&state, volume))));
                told_volumes = to_do;
                // So that a job which is begun can be reached from the start, and by those only who may.
                let sorted = controller.by_host.get(&state);
                let network = network_map::network_map(&sorted, &host);
                ready.extend(
                    network_map::changes(&told_network, &network)
                        .iter()
                        .map(sse::message),
                );
                told_network = network;
                let now = wanted(&state, sorted.jobs(&host), &told);
                ready.extend(changes(&told, &now).iter().map(sse::message));
                told = now;
                if std::mem::take(&mut is_first) {
                    ready.push_back(sse::message(&Assignment::Current));
                }
                if ready.is_empty() && wakes.changed().await.is_err() {
                    return None;
                }
            }
        },
    )
}
