//! A host for every pending job, or the reason why there is none.
//!
//! A host can take a job if it is up and not being drained, has the tags, and has the memory free that the job's
//! type requests. Of those: the fewest jobs of the same group first, then the least loaded, then by id.
//!
//! Memory is what a host cannot share, so declared requests are never overcommitted, and stopping
//! jobs count until they are down. CPU is shared: it is counted to spread load, never to refuse.
//! Batches are served by the age of their oldest waiting job, new ones last, so that no app's
//! retries take what another has been waiting for.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    ops::{AddAssign, SubAssign},
    sync::LazyLock,
};

use types::{
    Host, Job, JobId, ProcessType, Release, ReleaseId, Resources, Table, Timestamp, Volume, VolumeId,
};

use crate::{
    Action, META_HOST, Wake,
    diff::{Batch, Changes},
    index::{GroupKey, Index, Standing},
    volumes::{self, Ask, Found, Pool},
};

/// What a process that declares nothing about memory counts for.
///
/// Its limit, and so its request, is 1 GiB by default (the original's number): counted in full, a
/// machine of 2 GiB would run one process; not counted at all, as in the original, it would run any
/// number until the kernel kills something. 64 MiB is what a small idle web process takes. Releases
/// are stored with the defaults filled in, so a request of exactly the default counts as undeclared.
pub const MEMORY_UNDECLARED_BYTES: i64 = 64 << 20;

/// What releases are stored with where they declare nothing. Asked for once for every job.
static MEMORY_DEFAULT_BYTES: LazyLock<i64> = LazyLock::new(|| Resources::default().request("memory"));

/// Hosts that are looked at in order of load before all are compared, beside those that have one of the group.
const WALK_MAX: usize = 16;
/// Hosts that are named when none has enough memory.
const NAMED_MAX: usize = 3;

/// What a job asks of a host.
#[derive(Clone, Copy)]
pub(crate) struct Need<'w> {
    memory_bytes: i64,
    cpu_milli: i64,
    tags: Option<&'w BTreeMap<String, String>>,
}

impl<'w> Need<'w> {
    pub fn of_type(process: &ProcessType, tags: Option<&'w BTreeMap<String, String>>) -> Self {
        Need {
            tags,
            ..Need::of_resources(&process.resources)
        }
    }

    /// What a job asks for, whatever it is. Tags are its formation's to say.
    pub fn of_job(releases: &Table<ReleaseId, Release>, job: &Job) -> Self {
        let own = job
            .one_off
            .as_ref()
            .map(|one_off| &one_off.resources)
            .filter(|own| !own.0.is_empty());
        let of_type = || {
            let process = releases.get(&job.release?)?.processes.get(&job.process_type)?;
            Some(&process.resources)
        };
        own.or_else(of_type)
            .map_or_else(|| Need::of_resources(&Resources::default()), Need::of_resources)
    }

    fn of_resources(resources: &Resources) -> Self {
        let memory_bytes = match resources.request("memory") {
            request if request == *MEMORY_DEFAULT_BYTES => MEMORY_UNDECLARED_BYTES,
            request => request.max(0),
        };
        Need {
            memory_bytes,
            cpu_milli: resources.request("cpu").max(0),
            tags: None,
        }
    }
}

/// Emits, for each pending job old and new, its place or its reason to wait.
pub(crate) fn place_all<'w, 'a>(
    index: &'w Index<'a>,
    changes: &'w Changes<'w, 'a>,
    wake: &mut Wake,
    actions: &mut Vec<Action>,
) -> Places<'w, 'a> {
    let mut places = Places::new(index);
    let mut units = units(index, changes);
    // New ones wait from now on, so that they stand where they will stand in the next plan.
    units.sort_by_key(|unit| (unit.since, unit.job));
    let mut pool = Pool::new(index, changes);
    let mut choosers = BTreeMap::new();
    let placed: Vec<Vec<Placed>> = units
        .iter()
        .map(|unit| places.place_unit(unit, &mut pool, &mut choosers, wake))
        .collect();
    // Reasons are given when all is placed: they name what is free, and must still be true then.
    for (unit, placed) in units.iter().zip(placed) {
        let mut reason = None;
        for entry in placed {
            places.emit(unit.batch, entry, &mut reason, actions);
        }
    }
    places
}

/// What is placed in one go: a batch, or each job by itself where volumes are asked for, since which
/// of them a job waits for must follow from its age alone.
struct Unit<'b, 'a> {
    since: Timestamp,
    job: Option<JobId>,
    batch: &'b Batch<'b, 'a>,
    jobs: Vec<(&'b Job, bool)>,
    asks: Vec<Ask<'a>>,
}

fn units<'b, 'a>(index: &Index<'a>, changes: &'b Changes<'b, 'a>) -> Vec<Unit<'b, 'a>> {
    let mut units = Vec::with_capacity(changes.batches.len());
    for batch in &changes.batches {
        let asks = volumes::asks_of(index, batch);
        let mut pending: Vec<&Job> = batch.pending.clone();
        pending.sort_by_key(|job| (job.created_at, job.id));
        let all = pending.into_iter().map(|job| (job, false));
        let all = all.chain(batch.new.iter().map(|job| (job, true)));
        if asks.is_empty() {
            units.push(Unit {
                since: batch.since().unwrap_or(index.now),
                job: None,
                batch,
                jobs: all.collect(),
                asks,
            });
            continue;
        }
        units.extend(all.map(|(job, is_new)| Unit {
            since: job.created_at,
            job: Some(job.id),
            batch,
            jobs: vec![(job, is_new)],
            asks: asks.clone(),
        }));
    }
    units
}

/// What is taken of each host, as far as this plan has come.
pub(crate) struct Places<'i, 'a> {
    index: &'i Index<'a>,
    slots: Vec<Slot>,
    /// Hosts that take jobs, by load.
    pub by_load: BTreeSet<(u64, u32)>,
    /// Where this plan has put one-off jobs.
    pub one_offs: Vec<(u32, Slot)>,
}

/// What jobs take of a host. Wide, as requests are whatever users wrote, and what is given back must be what
/// was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Slot {
    memory_taken_bytes: i128,
    cpu_taken_milli: i128,
}

struct Placed<'b, 'a> {
    job: &'b Job,
    is_new: bool,
    outcome: Outcome<'a>,
    volumes: Vec<VolumeId>,
    new_volumes: Vec<Volume>,
}

enum Outcome<'a> {
    Host(u32),
    /// Its time has not come.
    Later,
    NoHost,
    /// The host of its volume cannot take it.
    NotAt(u32, &'a Volume),
    /// Another job has its volume: in words.
    Held(String),
}

impl<'i, 'a> Places<'i, 'a> {
    fn new(index: &'i Index<'a>) -> Self {
        let mut places = Places {
            index,
            slots: vec![Slot::default(); index.hosts.len()],
            by_load: BTreeSet::new(),
            one_offs: Vec::new(),
        };
        for (slot, view) in places.slots.iter_mut().zip(&index.hosts) {
            *slot = index
                .memory
                .by_host
                .get(&view.host.id)
                .map_or(Slot::default(), |here| here.taken);
        }
        places.by_load = places.open().map(|at| (places.load(at), at)).collect();
        places
    }

    /// Millionths of the host's processors and memory that are spoken for, together. Requests are
    /// whatever users wrote, so there is a most.
    fn load(&self, at: u32) -> u64 {
        self.load_without(at, Slot::default())
    }

    pub fn load_without(&self, at: u32, gone: Slot) -> u64 {
        let mut slot = self.slots[at as usize];
        slot -= gone;
        slot.part_of(self.index.hosts[at as usize].host)
    }

    /// What a job adds to a host's load.
    pub fn weight(&self, at: u32, need: Need) -> u64 {
        Slot::of(need).part_of(self.index.hosts[at as usize].host)
    }

    /// Hosts that jobs may be started on, by position.
    pub fn open(&self) -> impl Iterator<Item = u32> {
        let all = (0..).zip(&self.index.hosts);
        all.filter(|(_, view)| view.is_open()).map(|(at, _)| at)
    }

    /// A host that says nothing about its memory is not limited by it.
    fn memory_free_bytes(&self, at: u32) -> i64 {
        let host = self.index.hosts[at as usize].host;
        if host.memory_bytes <= 0 {
            return i64::MAX;
        }
        let free = i128::from(host.memory_bytes) - self.slots[at as usize].memory_taken_bytes;
        i64::try_from(free).unwrap_or(i64::MIN)
    }

    pub fn can_take(&self, at: u32, need: Need) -> bool {
        self.index.hosts[at as usize].is_open() && self.can_hold(at, need)
    }

    /// The same for a job whose data are there: it can be nowhere else, also while the host is drained.
    fn can_hold(&self, at: u32, need: Need) -> bool {
        let view = &self.index.hosts[at as usize];
        view.standing == Standing::Up
            && view.has(need.tags)
            && self.memory_free_bytes(at) >= need.memory_bytes
    }

    pub fn put(&mut self, at: u32, need: Need) {
        // One that is being drained is not there, and takes only what has its data there.
        let is_open = self.by_load.remove(&(self.load(at), at));
        self.slots[at as usize] += Slot::of(need);
        if is_open {
            self.by_load.insert((self.load(at), at));
        }
    }

    fn place_unit<'b>(
        &mut self,
        unit: &Unit<'b, 'a>,
        pool: &mut Pool<'a>,
        choosers: &mut BTreeMap<Option<GroupKey<'a>>, Chooser>,
        wake: &mut Wake,
    ) -> Vec<Placed<'b, 'a>> {
        let Unit {
            batch, jobs, asks, ..
        } = unit;
        let mut chooser = choosers
            .remove(&batch.key)
            .filter(|_| unit.job.is_some() && batch.key.is_some())
            .unwrap_or_else(|| Chooser::new(self.index, batch.key));
        // Others were placed since.
        chooser.heap = None;
        let mut placed = Vec::with_capacity(jobs.len());
        for &(job, is_new) in jobs {
            let outcome = if job.run_at.is_some_and(|run_at| wake.is_ahead(run_at)) {
                Outcome::Later
            } else if let Some(outcome) = self.place_by_volumes(job, batch.need, asks, pool) {
                outcome
            } else if let Some(host) = job.meta.get(META_HOST) {
                let position = self
                    .index
                    .position(host)
                    .filter(|at| self.can_take(*at, batch.need));
                position.map_or(Outcome::NoHost, Outcome::Host)
            } else {
                chooser
                    .choose(self, batch.need)
                    .map_or(Outcome::NoHost, Outcome::Host)
            };
            if let Outcome::Host(at) = outcome {
                self.put(at, batch.need);
                if batch.key.is_none() {
                    self.one_offs.push((at, Slot::of(batch.need)));
                }
                chooser.chosen(self, at);
            }
            let (volumes, new_volumes) = match outcome {
                Outcome::Host(at) => pool.take(self.index, job, asks, at),
                _ => Default::default(),
            };
            placed.push(Placed {
                job,
                is_new,
                outcome,
                volumes,
                new_volumes,
            });
        }
        choosers.insert(batch.key, chooser);
        placed
    }

    /// Where a job has to go for its volumes, or why it waits; none if it has none yet.
    fn place_by_volumes(
        &self,
        job: &Job,
        need: Need,
        asks: &[Ask<'a>],
        pool: &mut Pool<'a>,
    ) -> Option<Outcome<'a>> {
        if asks.is_empty() {
            return None;
        }
        let only = match job.meta.get(META_HOST) {
            // There is no such host, as it will turn out.
            Some(host) => Some(self.index.position(host)?),
            None => None,
        };
        let outcome = match pool.find(job.app, asks, only) {
            Found::Nothing => return None,
            Found::Held(why) => Outcome::Held(why),
            Found::Free(hosts) => {
                let open = hosts.iter().find(|(at, _)| self.can_take(*at, need));
                match open.or_else(|| hosts.iter().find(|(at, _)| self.can_hold(*at, need))) {
                    Some((at, _)) => return Some(Outcome::Host(*at)),
                    None => Outcome::NotAt(hosts[0].0, hosts[0].1),
                }
            }
        };
        pool.count_on(job.app, asks, only);
        Some(outcome)
    }

    fn emit(&self, batch: &Batch, entry: Placed, reason: &mut Option<String>, actions: &mut Vec<Action>) {
        let Placed {
            job,
            is_new,
            outcome,
            volumes,
            new_volumes,
        } = entry;
        let label = self.index.label(job);
        let waiting = match &outcome {
            Outcome::Host(_) => String::new(),
            Outcome::Later if !job.waiting.is_empty() => job.waiting.clone(),
            Outcome::Later => job
                .run_at
                .map_or_else(String::new, |run_at| format!("starts at {run_at}")),
            Outcome::NotAt(at, volume) => {
                let host = &self.index.hosts[*at as usize].host.id;
                let why = self.why_not_on(host.as_str(), batch.need);
                format!(
                    "its volume {} at {} is on host {host}: {why}",
                    volume.id, volume.path
                )
            }
            Outcome::Held(why) => why.clone(),
            Outcome::NoHost => match job.meta.get(META_HOST) {
                Some(host) => self.why_not_on(host, batch.need),
                None => reason.get_or_insert_with(|| self.why_nowhere(batch.need)).clone(),
            },
        };
        if is_new {
            actions.push(Action::CreateJob {
                job: Job {
                    waiting,
                    ..job.clone()
                },
                label: label.clone(),
            });
        } else if !waiting.is_empty() && waiting != job.waiting {
            actions.push(Action::ExplainJob {
                job: job.id,
                waiting,
                label: label.clone(),
            });
        }
        if let Outcome::Host(at) = outcome {
            let host = self.index.hosts[at as usize].host.id.clone();
            actions.push(Action::PlaceJob {
                job: job.id,
                host,
                volumes,
                new_volumes,
                label,
            });
        }
    }

    fn why_not_on(&self, host: &str, need: Need) -> String {
        let Some(at) = self.index.position(host) else {
            return format!("there is no host {host}");
        };
        if self.index.hosts[at as usize].standing != Standing::Up {
            return format!("host {host} does not answer");
        }
        if self.index.hosts[at as usize].host.is_draining {
            return format!("host {host} is being drained");
        }
        if !self.index.hosts[at as usize].has(need.tags) {
            return format!("host {host} has not the tags {}", in_one(need.tags));
        }
        let (needed, free) = (in_words(need.memory_bytes), in_words(self.memory_free_bytes(at)));
        format!("host {host} has not {needed} of memory free: it has {free}")
    }

    fn why_nowhere(&self, need: Need) -> String {
        let up = || self.by_load.iter().map(|(_, at)| *at);
        if self.by_load.is_empty() {
            let is_any_up = self.index.hosts.iter().any(|view| view.standing == Standing::Up);
            return match is_any_up {
                true => "every host that is up is being drained".to_owned(),
                false => "no host is up".to_owned(),
            };
        }
        let tags = in_one(need.tags);
        let mut fitting: Vec<u32> = up()
            .filter(|at| self.index.hosts[*at as usize].has(need.tags))
            .collect();
        if fitting.is_empty() {
            return format!("no host has the tags {tags}");
        }
        let with_tags = if tags.is_empty() {
            String::new()
        } else {
            format!(" with the tags {tags}")
        };
        let needed = in_words(need.memory_bytes);
        let in_all = |at: &u32| self.index.hosts[*at as usize].host.memory_bytes;
        fitting.sort_by_key(|at| (Reverse(in_all(at)), *at));
        if in_all(&fitting[0]) < need.memory_bytes {
            let largest = self.index.hosts[fitting[0] as usize].host;
            let has = in_words(largest.memory_bytes);
            return format!(
                "no host{with_tags} has {needed} of memory at all: {}, the largest, has {has}",
                largest.id
            );
        }
        fitting.sort_by_key(|at| (Reverse(self.memory_free_bytes(*at)), *at));
        let mut named: Vec<String> = fitting
            .iter()
            .take(NAMED_MAX)
            .map(|at| {
                let free = in_words(self.memory_free_bytes(*at));
                format!("{} has {free}", self.index.hosts[*at as usize].host.id)
            })
            .collect();
        match fitting.len().saturating_sub(NAMED_MAX) {
            0 => {}
            more => named.push(format!("{more} more have less")),
        }
        format!(
            "no host{with_tags} has {needed} of memory free: {}",
            named.join(", ")
        )
    }
}

impl Slot {
    pub fn of(need: Need) -> Slot {
        Slot {
            memory_taken_bytes: i128::from(need.memory_bytes),
            cpu_taken_milli: i128::from(need.cpu_milli),
        }
    }

    /// In millionths of what a host has, processors and memory together.
    fn part_of(self, host: &Host) -> u64 {
        let part = |taken: i128, of: i64| {
            let millionths = taken * 1_000_000 / i128::from(of.max(1));
            u64::try_from(millionths).unwrap_or(u64::MAX)
        };
        let memory = if host.memory_bytes > 0 {
            part(self.memory_taken_bytes, host.memory_bytes)
        } else {
            0
        };
        let cpu = part(
            self.cpu_taken_milli,
            if host.cpu_milli > 0 { host.cpu_milli } else { 1000 },
        );
        cpu.saturating_add(memory)
    }
}

impl AddAssign for Slot {
    fn add_assign(&mut self, other: Slot) {
        self.memory_taken_bytes += other.memory_taken_bytes;
        self.cpu_taken_milli += other.cpu_taken_milli;
    }
}

impl SubAssign for Slot {
    fn sub_assign(&mut self, other: Slot) {
        self.memory_taken_bytes -= other.memory_taken_bytes;
        self.cpu_taken_milli -= other.cpu_taken_milli;
    }
}

/// Finds the best host for one after another of a group.
///
/// Most groups are small and most hosts have none of them: the first in the order of load is then
/// the answer. Only where that fails are all hosts compared, once, in a heap that the group's own
/// placements keep up to date. Both ways give the same host.
struct Chooser {
    same: BTreeMap<u32, u32>,
    heap: Option<BinaryHeap<Reverse<(u32, u64, u32)>>>,
}

impl Chooser {
    fn new(index: &Index, key: Option<GroupKey>) -> Self {
        let mut same = BTreeMap::new();
        let group = key.and_then(|key| index.groups.get(&key));
        for host in group
            .iter()
            .flat_map(|group| &group.active)
            .filter_map(|job| job.host.as_ref())
        {
            if let Some(at) = index.position(host.as_str()) {
                *same.entry(at).or_default() += 1;
            }
        }
        Chooser { same, heap: None }
    }

    fn choose(&mut self, places: &Places, need: Need) -> Option<u32> {
        if self.heap.is_none() {
            let walk_max = WALK_MAX + self.same.len();
            let walk = places.by_load.iter().take(walk_max).map(|(_, at)| *at);
            let first = walk
                .into_iter()
                .find(|at| !self.same.contains_key(at) && places.can_take(*at, need));
            if first.is_some() {
                return first;
            }
        }
        let same = &self.same;
        let heap = self.heap.get_or_insert_with(|| {
            let able = places.by_load.iter().filter(|(_, at)| places.can_take(*at, need));
            able.map(|(load, at)| Reverse((same.get(at).copied().unwrap_or(0), *load, *at)))
                .collect()
        });
        loop {
            let Reverse((_, _, at)) = heap.pop()?;
            // One that is full stays so for the rest of the group.
            if places.can_take(at, need) {
                return Some(at);
            }
        }
    }

    fn chosen(&mut self, places: &Places, at: u32) {
        let count = self.same.entry(at).or_default();
        *count += 1;
        if let Some(heap) = &mut self.heap {
            heap.push(Reverse((*count, places.load(at), at)));
        }
    }
}

fn in_one(tags: Option<&BTreeMap<String, String>>) -> String {
    let tags = tags.into_iter().flatten();
    let tags: Vec<String> = tags.map(|(key, value)| format!("{key}={value}")).collect();
    tags.join(" ")
}

/// `512 MB`, `2 GB`: binary units by their usual names, as memory is given everywhere else.
fn in_words(bytes: i64) -> String {
    const MB: i64 = 1 << 20;
    match bytes.max(0) {
        bytes if bytes >= 1 << 30 && bytes % (1 << 30) == 0 => format!("{} GB", bytes >> 30),
        bytes if bytes >= MB => format!("{} MB", bytes / MB),
        bytes => format!("{bytes} bytes"),
    }
}
