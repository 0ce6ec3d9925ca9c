//! Which volumes a job gets: those that its type left free, oldest first, and new ones only if there
//! are none.
//!
//! A volume stays on the host that it was made on, so it is what decides where its job runs. A job
//! that there is a volume for waits for that one's host, and for whoever still has it, rather than
//! starting without its data. Each waiting job counts on one volume, so that a type that is scaled up
//! meanwhile gets new ones for what is more.

use std::collections::{BTreeMap, BTreeSet};

use types::{
    AppId, Host, Job, JobId, JobState, ProcessType, Volume, VolumeId, VolumeRequest, VolumeState, VolumeType,
};
use uuid::Uuid;

use crate::{
    diff::{Batch, Changes},
    index::Index,
};

/// Names the ids of new volumes, so that they never meet those of anything else.
const VOLUME_IDS: Uuid = Uuid::from_u128(0x2f6b_90d4_17c8_4e55_9b3e_c0a1_58d7_63fe);

/// Whose volumes are alike: (app, process type, path).
type Kind<'a> = (AppId, &'a str, &'a str);

/// What a job asks for at one path.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    job_type: &'a str,
    request: &'a VolumeRequest,
    /// A one-off job that uses another type's: it waits for those rather than get one of its own.
    is_borrowed: bool,
}

/// A volume that a job may get, now or later.
struct Candidate<'a> {
    volume: &'a Volume,
    /// Where it is, by position.
    host: u32,
    /// The job that has it, and whether that one is on its way out.
    holder: Option<(&'a Job, bool)>,
}

pub(crate) struct Pool<'a> {
    /// Oldest first.
    kinds: BTreeMap<Kind<'a>, Vec<Candidate<'a>>>,
}

/// What there is for a job.
pub(crate) enum Found<'a> {
    /// Nothing: any host will do.
    Nothing,
    /// Free ones: the hosts that they are on, with one of them each, best first.
    Free(Vec<(u32, &'a Volume)>),
    /// Only some that other jobs still have: why the job waits.
    Held(String),
}

impl<'a> Pool<'a> {
    pub fn new(index: &Index<'a>, changes: &Changes<'_, 'a>) -> Self {
        let stops: BTreeSet<JobId> = changes.stops.iter().map(|(job, _)| job.id).collect();
        let mut kinds: BTreeMap<Kind, Vec<Candidate>> = BTreeMap::new();
        for volume in index.cluster.volumes.values() {
            // A host that was removed does not come back, and what was on it neither.
            let position = index.position(volume.host_id.as_str());
            let (Some(app), Some(host)) = (volume.app, position) else {
                continue;
            };
            if !volume.is_usable() || volume.delete_on_stop {
                continue;
            }
            let holder = volume.job.and_then(|job| index.cluster.jobs.get(&job));
            let holder = holder.filter(|job| job.state != JobState::Down && !index.is_lost(job.id));
            let is_ending = |job: &Job| {
                job.state == JobState::Stopping || job.one_off.is_some() || stops.contains(&job.id)
            };
            kinds
                .entry((app, &volume.job_type, &volume.path))
                .or_default()
                .push(Candidate {
                    volume,
                    host,
                    holder: holder.map(|job| (&**job, is_ending(job))),
                });
        }
        for candidates in kinds.values_mut() {
            candidates.sort_by_key(|candidate| (candidate.volume.created_at, candidate.volume.id));
        }
        Pool { kinds }
    }

    /// What there is for a job, on `only` that host if it has to be there. If the job then waits, it
    /// is [`Pool::count_on`] that keeps others from waiting for the same.
    pub fn find(&self, app: AppId, asks: &[Ask<'a>], only: Option<u32>) -> Found<'a> {
        let lasting = || asks.iter().filter(|ask| !ask.request.delete_on_stop);
        let of_ask = |ask: &Ask<'a>| self.kinds.get(&(app, ask.job_type, ask.request.path.as_str()));
        let here = |candidate: &&Candidate| only.is_none_or(|only| candidate.host == only);
        let mut free: Vec<&Candidate> = lasting()
            .flat_map(|ask| of_ask(ask).into_iter().flatten())
            .filter(here)
            .filter(|candidate| candidate.holder.is_none())
            .collect();
        if !free.is_empty() {
            free.sort_by_key(|candidate| (candidate.volume.created_at, candidate.volume.id));
            let mut seen = BTreeSet::new();
            free.retain(|candidate| seen.insert(candidate.host));
            return Found::Free(free.iter().map(|found| (found.host, found.volume)).collect());
        }
        for ask in lasting() {
            let mut candidates = of_ask(ask).into_iter().flatten().filter(here);
            let held = candidates.find_map(|candidate| {
                let (job, is_ending) = candidate.holder?;
                (is_ending || ask.is_borrowed).then_some((candidate.volume, job))
            });
            if let Some((volume, job)) = held {
                return Found::Held(format!(
                    "waits for volume {} at {} until job {} has ended",
                    volume.id, volume.path, job.id
                ));
            }
        }
        Found::Nothing
    }

    /// A job that waits counts on the first that there is for it, at each path.
    pub fn count_on(&mut self, app: AppId, asks: &[Ask<'a>], only: Option<u32>) {
        for ask in asks.iter().filter(|ask| !ask.request.delete_on_stop) {
            let key = (app, ask.job_type, ask.request.path.as_str());
            let Some(candidates) = self.kinds.get_mut(&key) else {
                continue;
            };
            let here = |candidate: &Candidate| only.is_none_or(|only| candidate.host == only);
            let free = |candidate: &Candidate| candidate.holder.is_none();
            let held = |candidate: &Candidate| {
                candidate
                    .holder
                    .is_some_and(|(_, is_ending)| is_ending || ask.is_borrowed)
            };
            let position = candidates
                .iter()
                .position(|found| here(found) && free(found))
                .or_else(|| candidates.iter().position(|found| here(found) && held(found)));
            if let Some(at) = position {
                candidates.remove(at);
            }
        }
    }

    /// The volumes of a job on the host at `at`, and the rows of those that are new.
    pub fn take(
        &mut self,
        index: &Index,
        job: &Job,
        asks: &[Ask<'a>],
        at: u32,
    ) -> (Vec<VolumeId>, Vec<Volume>) {
        let (mut ids, mut new) = (Vec::with_capacity(asks.len()), Vec::new());
        for ask in asks {
            let key = (job.app, ask.job_type, ask.request.path.as_str());
            let candidates = self.kinds.get_mut(&key).filter(|_| !ask.request.delete_on_stop);
            let free = candidates.and_then(|candidates| {
                let found = candidates
                    .iter()
                    .position(|found| found.host == at && found.holder.is_none())?;
                Some(candidates.remove(found).volume.id)
            });
            ids.push(free.unwrap_or_else(|| {
                let volume = new_volume(index, job, ask, index.hosts[at as usize].host);
                let id = volume.id;
                new.push(volume);
                id
            }));
        }
        (ids, new)
    }
}

/// What the jobs of a batch ask for.
pub(crate) fn asks_of<'a>(index: &Index<'a>, batch: &Batch<'_, 'a>) -> Vec<Ask<'a>> {
    let of_type = |release, name: &str| {
        let row = index.cluster.releases.get(&release)?;
        row.processes.get_key_value(name)
    };
    if let Some((_, release, process_type)) = batch.key {
        let found = of_type(release, process_type);
        let requests = found.into_iter().flat_map(|(_, process)| &process.volumes);
        return requests
            .map(|request| Ask {
                job_type: process_type,
                request,
                is_borrowed: false,
            })
            .collect();
    }
    let one_off = batch
        .pending
        .iter()
        .find_map(|job| Some((*job, job.one_off.as_ref()?)));
    let Some((job, one_off)) = one_off else {
        return Vec::new();
    };
    let own = one_off.volumes.iter().map(|request| Ask {
        job_type: &job.process_type,
        request,
        is_borrowed: false,
    });
    let borrowed = job
        .release
        .and_then(|release| of_type(release, &one_off.volumes_from));
    let borrowed = borrowed.into_iter().flat_map(|(name, process)| {
        process.volumes.iter().map(move |request| Ask {
            job_type: name,
            request,
            is_borrowed: true,
        })
    });
    own.chain(borrowed).collect()
}

/// Paths at which a type's volumes outlive its jobs.
pub(crate) fn lasting_paths(process: &ProcessType) -> impl Iterator<Item = &str> {
    let lasting = process.volumes.iter().filter(|request| !request.delete_on_stop);
    lasting.map(|request| request.path.as_str())
}

/// Whether a job's data are where it is, so that it cannot move.
pub(crate) fn is_bound(process: &ProcessType, job: &Job) -> bool {
    !job.volumes.is_empty() && lasting_paths(process).next().is_some()
}

fn new_volume(index: &Index, job: &Job, ask: &Ask, host: &Host) -> Volume {
    let mut name = job.id.0.as_bytes().to_vec();
    name.extend(ask.request.path.as_bytes());
    Volume {
        path: ask.request.path.clone(),
        delete_on_stop: ask.request.delete_on_stop,
        id: VolumeId(Uuid::new_v5(&VOLUME_IDS, &name)),
        host_id: host.id.clone(),
        kind: VolumeType::Data,
        state: VolumeState::Pending,
        app: Some(job.app),
        release: job.release,
        job: None,
        job_type: ask.job_type.to_owned(),
        meta: BTreeMap::new(),
        created_at: index.now,
        updated_at: index.now,
        decommissioned_at: None,
    }
}
