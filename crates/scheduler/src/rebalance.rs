//! Moves jobs from hosts that have many to hosts that have few: what a host that has come back, or a new one,
//! is there for.
//!
//! A move starts one more job of a type, which names in [`META_MOVES`] the one whose place it takes; that one
//! goes when the new one serves (`diff`). If the new one does not come up the old one has never been gone.
//!
//! ```text
//! of one type     two more on one host than on another that could take one
//! of all types    a load so much higher that it is still no less after one job has gone to the other host
//! ```
//!
//! Every move makes the jobs of a type more even, or leaves them as they are and makes the loads more even, so
//! moves come to an end by themselves and none is taken back. What keeps them from following every trouble:
//! * A type moves only at rest: all its jobs serve, none was started, ended by itself or was scaled lately.
//! * A host takes moved jobs only when it has been up for [`CALM_MIN`]; for longer, if it comes and goes.
//! * A host takes one moved job at a time.
//! * What has volumes stays, and so does what may not run twice for a moment (one-down-one-up).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use types::{AppId, Job, JobId, JobState, ReleaseId, Strategy, Timestamp};

use crate::{
    Action, META_MOVES, Wake,
    diff::{self, Changes},
    index::{Group, GroupKey, Index},
    memory::{FormationKey, key_of},
    place::{Need, Places, Slot},
    surplus,
    wanted::{Want, Wanted},
};

/// How long a host must have been up, and the jobs of a type must have been the same, before they move: a
/// machine that restarts again and again, or a deployment and what comes after it, is over by then.
pub const CALM_MIN: Duration = Duration::from_secs(60);

/// A host that comes and goes waits for twice as long after each time, up to about an hour.
const CALM_DOUBLINGS_MAX: u32 = 6;
/// Between two moves of one type. The new job has shown by then that it does not end at once.
const PAUSE: Duration = Duration::from_secs(10);
/// Millionths of a host, as loads are: less is not worth anybody's connections.
const GAP_MIN: u64 = 100_000;
/// Hosts that are compared, from the most and from the least loaded.
const LOOK_MAX: usize = 4;

/// The jobs among `active` that go when those that were started in their place serve, each with that one.
/// No more than there are too many: when others are gone, one that was to move stays.
pub(crate) fn moves<'a>(active: &[&'a Job], count: usize) -> Vec<(&'a Job, &'a Job)> {
    let spare = active.len().saturating_sub(count);
    let movers = active.iter().filter(|job| spare > 0 && job.host.is_some());
    let moves = movers.filter_map(|mover| {
        let moved = mover.meta.get(META_MOVES)?.parse().ok()?;
        Some((*active.iter().find(|job| job.id == moved)?, *mover))
    });
    moves.take(spare).collect()
}

/// Whether a type can be uneven at all: two of its jobs are on one host.
pub(crate) fn is_stacked(group: &Group) -> bool {
    let mut hosts = BTreeSet::new();
    let mut placed = group.active.iter().filter_map(|job| job.host.as_ref());
    placed.any(|host| !hosts.insert(host))
}

/// Starts the moves for which it is time, and returns the formations that are to be looked at again.
pub(crate) fn rebalance<'a>(
    index: &Index<'a>,
    wanted: &Wanted<'a>,
    changes: &Changes<'_, 'a>,
    deploying: &BTreeSet<(AppId, ReleaseId)>,
    places: Places<'_, 'a>,
    wake: &mut Wake,
    actions: &mut Vec<Action>,
) -> BTreeSet<FormationKey> {
    if places.by_load.len() < 2 {
        return BTreeSet::new();
    }
    let mut rebalance = Rebalance {
        index,
        wanted,
        deploying,
        touched: changes.keys(),
        places,
        busy: BTreeSet::new(),
        relief: BTreeMap::new(),
        others: BTreeMap::new(),
        wake,
        actions,
    };
    rebalance.note_what_goes_on(changes);
    let mut uneven = BTreeSet::new();
    for (key, group) in &index.groups {
        if rebalance.spread(*key, group) {
            uneven.insert((key.0, key.1));
        }
    }
    while rebalance.level() {}
    uneven
}

/// What a host is for a job that moves.
#[derive(Clone, Copy, PartialEq)]
enum Taker {
    Ready,
    /// It has not been up for long. What would go there waits, rather than move twice.
    Soon,
    /// It has one on its way to it, or is one that comes and goes.
    No,
}

struct Rebalance<'x, 'i, 'a> {
    index: &'x Index<'a>,
    wanted: &'x Wanted<'a>,
    /// Formations whose counts are on the way.
    deploying: &'x BTreeSet<(AppId, ReleaseId)>,
    /// Types that this plan does something with already.
    touched: BTreeSet<GroupKey<'a>>,
    places: Places<'i, 'a>,
    /// Hosts that a moved job is on its way to.
    busy: BTreeSet<u32>,
    /// What will be free on a host when those that are going are gone, and one-off jobs.
    relief: BTreeMap<u32, Slot>,
    /// Types that the plan does not look at otherwise.
    others: BTreeMap<GroupKey<'a>, Group<'a>>,
    wake: &'x mut Wake,
    actions: &'x mut Vec<Action>,
}

impl<'a> Rebalance<'_, '_, 'a> {
    fn note_what_goes_on(&mut self, changes: &Changes<'_, 'a>) {
        let releases = &self.index.cluster.releases;
        let stops: BTreeMap<JobId, &Job> = changes.stops.iter().map(|(job, _)| (job.id, *job)).collect();
        // They end by themselves, and nobody should have to move for a build.
        let mut going: BTreeMap<JobId, &Job> = self.index.one_offs.iter().map(|job| (job.id, *job)).collect();
        going.extend(&stops);
        for (key, group) in &self.index.groups {
            going.extend(group.stopping.iter().map(|job| (job.id, *job)));
            let Some(want) = self.wanted.want(*key) else {
                continue;
            };
            for (moved, mover) in moves(&group.active, want.count as usize) {
                // With one of them gone by this plan it is no move any more.
                if !stops.contains_key(&mover.id) && !stops.contains_key(&moved.id) {
                    self.busy.extend(self.index.host_position(mover));
                    going.insert(moved.id, moved);
                }
            }
        }
        for job in going.into_values().filter(|job| job.host.is_some()) {
            if let Some(at) = self.index.host_position(job) {
                self.relieve(at, Slot::of(Need::of_job(releases, job)));
            }
        }
        for (at, slot) in std::mem::take(&mut self.places.one_offs) {
            self.relieve(at, slot);
        }
    }

    fn relieve(&mut self, at: u32, by: Slot) {
        *self.relief.entry(at).or_default() += by;
    }

    /// Moves one job of a type whose jobs are not even. Returns whether they are not, for whatever reason.
    fn spread(&mut self, key: GroupKey<'a>, group: &Group<'a>) -> bool {
        if !is_stacked(group) {
            return false;
        }
        let Some(want) = self.wanted.want(key).filter(|want| self.may_move(key, want)) else {
            return false;
        };
        let mut by_host: BTreeMap<u32, Vec<&Job>> = BTreeMap::new();
        for job in &group.active {
            if let Some(at) = job
                .host
                .as_ref()
                .and_then(|host| self.index.position(host.as_str()))
            {
                by_host.entry(at).or_default().push(job);
            }
        }
        let count = |at: u32| by_host.get(&at).map_or(0, Vec::len);
        let most = by_host.values().map(Vec::len).max().unwrap_or(0);
        let is_less = |at: &u32| count(*at) + 2 <= most && self.index.hosts[*at as usize].has(want.tags);
        let less: Vec<u32> = self.places.open().filter(is_less).collect();
        if less.is_empty() {
            return false;
        }
        let Some(calm_at) = self.calm_at(key, group, &want) else {
            return true;
        };
        if self.wake.is_ahead(calm_at) {
            return true;
        }
        let need = Need::of_type(want.process, want.tags);
        let takers: Vec<(u32, Taker)> = less.into_iter().map(|at| (at, self.taker(at))).collect();
        let able = takers
            .into_iter()
            .filter(|(at, taker)| *taker != Taker::No && self.places.can_take(*at, need));
        let to = able.min_by_key(|(at, _)| (count(*at), self.load(*at), *at));
        let to = to.and_then(|(at, taker)| (taker == Taker::Ready).then_some(at));
        let from = by_host.keys().copied().filter(|at| count(*at) == most);
        let from = from.max_by_key(|at| (self.load(*at), *at));
        if let (Some(from), Some(to)) = (from, to) {
            let mut there = by_host.remove(&from).unwrap_or_default();
            surplus::sort(self.index, &mut there);
            self.start(key, there[0], need, from, to);
        }
        true
    }

    /// Moves one job from one of the most loaded hosts to one of the least loaded; returns whether it did.
    fn level(&mut self) -> bool {
        let mut takers = Vec::new();
        let by_load: Vec<u32> = self.places.by_load.iter().map(|(_, at)| *at).collect();
        for at in &by_load {
            match self.taker(*at) {
                Taker::Ready if takers.len() < LOOK_MAX => takers.push(*at),
                Taker::Soon if takers.is_empty() => return false,
                _ => {}
            }
        }
        for from in by_load.into_iter().rev().take(LOOK_MAX) {
            for to in takers.iter().copied().filter(|to| *to != from) {
                if self.load(from).saturating_sub(self.load(to)) < GAP_MIN {
                    continue;
                }
                let here = self
                    .index
                    .memory
                    .by_host
                    .get(&self.index.hosts[from as usize].host.id);
                for job in here.into_iter().flat_map(|here| here.running.values()) {
                    if self.move_for_load(job, from, to) {
                        return true;
                    }
                }
            }
        }
        false
    }

    fn move_for_load(&mut self, job: &'a Job, from: u32, to: u32) -> bool {
        let Some((app, release)) = key_of(job).filter(|_| job.state == JobState::Up) else {
            return false;
        };
        let key = (app, release, job.process_type.as_str());
        let Some(want) = self.wanted.want(key).filter(|want| self.may_move(key, want)) else {
            return false;
        };
        let need = Need::of_type(want.process, want.tags);
        let stays_no_less = |lighter: Option<u64>, heavier: u64| lighter.is_some_and(|load| load >= heavier);
        let lighter = self.load(from).checked_sub(self.places.weight(from, need));
        let heavier = self.load(to).saturating_add(self.places.weight(to, need));
        if !stays_no_less(lighter, heavier) || !self.places.can_take(to, need) {
            return false;
        }
        if !self.index.groups.contains_key(&key) && !self.others.contains_key(&key) {
            self.others
                .extend(self.index.group_of(key).map(|group| (key, group)));
        }
        let Some(group) = self.index.groups.get(&key).or_else(|| self.others.get(&key)) else {
            return false;
        };
        let count = |at: u32| {
            let placed = group
                .active
                .iter()
                .filter(|job| self.index.host_position(job) == Some(at));
            placed.count()
        };
        if count(to) >= count(from) {
            return false;
        }
        match self.calm_at(key, group, &want) {
            Some(calm_at) if !self.wake.is_ahead(calm_at) => {
                self.start(key, job, need, from, to);
                true
            }
            _ => false,
        }
    }

    fn may_move(&self, key: GroupKey<'a>, want: &Want) -> bool {
        let strategy = self.index.cluster.apps.get(&key.0).map(|app| app.strategy);
        !want.process.omni && want.process.volumes.is_empty() && strategy != Some(Strategy::OneDownOneUp)
    }

    /// When a type's jobs will have been the same for long enough, if all of them serve now.
    fn calm_at(&self, key: GroupKey<'a>, group: &Group, want: &Want) -> Option<Timestamp> {
        let is_where_it_should_be = |job: &&Job| {
            let view = job.host.as_ref().and_then(|host| self.index.view(host));
            view.is_some_and(|view| view.is_open() && view.has(want.tags))
        };
        let rests = group.active.len() == want.count as usize
            && group.stopping.is_empty()
            && group.active.iter().all(|job| surplus::serves(self.index, job))
            && group.active.iter().all(is_where_it_should_be)
            && !self.touched.contains(&key)
            && !self.deploying.contains(&(key.0, key.1));
        if !rests {
            return None;
        }
        let begun = group
            .active
            .iter()
            .map(|job| match job.meta.contains_key(META_MOVES) {
                true => job.created_at + PAUSE,
                false => job.created_at + CALM_MIN,
            });
        // A host's clock may be ahead of ours.
        let ended = group
            .crashed
            .iter()
            .chain(&group.withdrawn)
            .map(|job| job.ended_at.unwrap_or(job.updated_at).min(self.index.now) + CALM_MIN);
        begun.chain(ended).chain([want.since + CALM_MIN]).max()
    }

    fn taker(&mut self, at: u32) -> Taker {
        let host = self.index.hosts[at as usize].host;
        let is_early = self.wake.is_ahead(host.up_since + calm_after(host.relapses));
        match (self.busy.contains(&at), is_early) {
            (true, _) => Taker::No,
            (false, false) => Taker::Ready,
            (false, true) if host.relapses == 0 => Taker::Soon,
            (false, true) => Taker::No,
        }
    }

    /// A host's load without that.
    fn load(&self, at: u32) -> u64 {
        let relief = self.relief.get(&at).copied().unwrap_or_default();
        self.places.load_without(at, relief)
    }

    fn start(&mut self, key: GroupKey<'a>, moved: &Job, need: Need, from: u32, to: u32) {
        let mut job = diff::new_job(self.index, key, 0, None, None);
        job.meta.insert(META_MOVES.to_owned(), moved.id.to_string());
        let label = self.index.label(&job);
        let id = job.id;
        self.actions.push(Action::CreateJob {
            job,
            label: label.clone(),
        });
        self.actions.push(Action::PlaceJob {
            job: id,
            host: self.index.hosts[to as usize].host.id.clone(),
            volumes: Vec::new(),
            new_volumes: Vec::new(),
            label,
        });
        self.places.put(to, need);
        self.relieve(from, Slot::of(need));
        self.busy.insert(to);
        self.touched.insert(key);
    }
}

fn calm_after(relapses: u32) -> Duration {
    CALM_MIN * (1 << relapses.min(CALM_DOUBLINGS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_comes_and_goes_waits_ever_longer_up_to_about_an_hour() {
        let minutes = |relapses| calm_after(relapses).as_secs() / 60;
        assert_eq!(
            [0, 1, 2, 5, 6, 7, u32::MAX].map(minutes),
            [1, 2, 4, 32, 64, 64, 64]
        );
    }
}
