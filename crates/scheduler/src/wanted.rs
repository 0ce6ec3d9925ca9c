//! What is wanted: the store's formations, with the changes that this plan's deployments make.

use std::collections::{BTreeMap, BTreeSet};

use types::{AppId, Formation, ProcessType, Release, ReleaseId, Table, Timestamp};

use crate::{Cluster, index::GroupKey, memory::FormationKey};

pub(crate) struct Wanted<'a> {
    cluster: &'a Cluster,
    stored: &'a Table<(AppId, ReleaseId), Formation>,
    changed: BTreeMap<(AppId, ReleaseId), Option<Formation>>,
}

/// What one process type of a release is to have.
pub(crate) struct Want<'w, 'a> {
    /// More than zero. Omni types have one job on each host whatever the count.
    pub count: u32,
    pub process: &'a ProcessType,
    pub tags: Option<&'w BTreeMap<String, String>>,
    /// When the formation was last changed.
    pub since: Timestamp,
}

impl<'a> Wanted<'a> {
    pub fn new(cluster: &'a Cluster) -> Self {
        Wanted {
            cluster,
            stored: &cluster.formations,
            changed: BTreeMap::new(),
        }
    }

    pub fn formation(&self, app: AppId, release: ReleaseId) -> Option<&Formation> {
        match self.changed.get(&(app, release)) {
            Some(changed) => changed.as_ref(),
            None => self.stored.get(&(app, release)).map(|formation| &**formation),
        }
    }

    pub fn set(&mut self, formation: Formation) {
        self.changed
            .insert((formation.app, formation.release), Some(formation));
    }

    pub fn delete(&mut self, app: AppId, release: ReleaseId) {
        self.changed.insert((app, release), None);
    }

    /// What a type is to have, if anything: nothing of deleted apps or releases, and nothing that
    /// the release does not have.
    pub fn want(&self, (app, release, process_type): GroupKey<'a>) -> Option<Want<'_, 'a>> {
        let formation = self.formation(app, release)?;
        let process = self.startable(app, release)?.processes.get(process_type)?;
        let count = *formation
            .processes
            .get(process_type)
            .filter(|count| **count > 0)?;
        let tags = formation.tags.get(process_type).filter(|tags| !tags.is_empty());
        Some(Want {
            count,
            process,
            tags,
            since: formation.updated_at,
        })
    }

    /// Every (app, release, type) of these formations, and of those that were changed, of which something
    /// is wanted.
    pub fn keys(&self, formations: &BTreeSet<FormationKey>) -> BTreeSet<GroupKey<'a>> {
        let mut keys = BTreeSet::new();
        for &(app, release) in formations.iter().chain(self.changed.keys()) {
            let Some(row) = self.startable(app, release) else {
                continue;
            };
            let types = row
                .processes
                .keys()
                .map(|process_type| (app, release, process_type.as_str()));
            keys.extend(types.filter(|key| self.want(*key).is_some()));
        }
        keys
    }

    /// Whether what a formation is to have depends on which hosts there are.
    pub fn goes_by_hosts(&self, (app, release): FormationKey) -> bool {
        let has_tags = |formation: &Formation| formation.tags.values().any(|tags| !tags.is_empty());
        let has_omni = |row: &Release| row.processes.values().any(|process| process.omni);
        self.formation(app, release).is_some_and(has_tags)
            || self.startable(app, release).is_some_and(has_omni)
    }

    fn startable(&self, app: AppId, release: ReleaseId) -> Option<&'a Release> {
        self.cluster.apps.get(&app)?;
        self.cluster.releases.get(&release).map(|release| &**release)
    }
}
