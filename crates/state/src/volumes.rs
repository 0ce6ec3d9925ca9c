//! Volumes: attached to one job at a time, kept when it ends, destroyed when asked or with their app.
//!
//! A row says who may use the files, the host has them. A destroyed volume's row stays until its host
//! has said that the files are gone, so that a host that was away still hears of it.

use std::sync::Arc;

use types::{AppId, HostId, Job, JobId, JobState, Timestamp, Volume, VolumeId, VolumeReport, VolumeState};

use crate::{
    State,
    command::{JobChange, Rejection},
    event::Subject,
};

impl State {
    /// Volumes of one app, also destroyed ones that are still on disk, in no useful order.
    pub fn volumes_of(&self, app: AppId) -> impl Iterator<Item = &Arc<Volume>> {
        self.volumes
            .values()
            .filter(move |volume| volume.app == Some(app))
    }

    /// The job that has a volume and has not ended.
    pub fn volume_holder(&self, volume: &Volume) -> Option<&Arc<Job>> {
        let job = self.jobs.get(&volume.job?)?;
        (job.state != JobState::Down).then_some(job)
    }

    /// A row as somebody outside the scheduler writes it. What is there keeps what its users rely on:
    /// only metadata changes.
    pub(crate) fn put_volume(&mut self, at: Timestamp, mut volume: Volume) -> Result<(), Rejection> {
        if let Some(known) = self.volumes.get(&volume.id) {
            if (&known.host_id, known.app, &known.path) != (&volume.host_id, volume.app, &volume.path) {
                let message = format!("volume {} exists, and stays where and whose it is", volume.id);
                return Err(Rejection::conflict(message));
            }
            let mut known = Volume::clone(known);
            known.meta = volume.meta;
            known.updated_at = at;
            self.store_volume(at, known);
            return Ok(());
        }
        if !self.hosts.contains_key(&volume.host_id) {
            return Err(Rejection::invalid(
                "host_id",
                format!("names no host: {}", volume.host_id),
            ));
        }
        if let Some(app) = volume.app {
            self.require_app(app)?;
        }
        volume.state = VolumeState::Pending;
        volume.job = None;
        (volume.created_at, volume.updated_at) = (at, at);
        self.store_volume(at, volume);
        Ok(())
    }

    /// Pending to starting, with its volumes: all of it or nothing.
    pub(crate) fn place_job(
        &mut self,
        at: Timestamp,
        id: JobId,
        host: HostId,
        volumes: Vec<VolumeId>,
        new_volumes: Vec<Volume>,
    ) -> Result<(), Rejection> {
        let job = self
            .jobs
            .get(&id)
            .ok_or_else(|| Rejection::not_found(format!("job {id}")))?
            .clone();
        if job.state != JobState::Pending {
            return Ok(());
        }
        let mut attached = Vec::with_capacity(volumes.len());
        for volume in &volumes {
            let known = self.volumes.get(volume);
            let made = || new_volumes.iter().find(|new| new.id == *volume);
            let row = match known {
                Some(known) => Volume::clone(known),
                None => made()
                    .ok_or_else(|| Rejection::not_found(format!("volume {volume}")))?
                    .clone(),
            };
            let is_free = self.volume_holder(&row).is_none_or(|holder| holder.id == id);
            if !is_free || !row.is_usable() || row.host_id != host || row.app != Some(job.app) {
                let message = format!("volume {volume} cannot be attached to job {id} on {host}");
                return Err(Rejection::conflict(message));
            }
            attached.push(Volume {
                job: Some(id),
                release: job.release.or(row.release),
                updated_at: at,
                ..row
            });
        }
        for volume in attached {
            self.store_volume(at, volume);
        }
        self.move_job(
            at,
            id,
            JobChange::Place {
                host,
                volumes,
                new_volumes: vec![],
            },
        )
    }

    /// An ended job has no volumes any more; those that were only for it go.
    pub(crate) fn detach_volumes(&mut self, at: Timestamp, job: &Job) {
        for id in &job.volumes {
            let Some(found) = self.volumes.get(id).filter(|volume| volume.job == Some(job.id)) else {
                continue;
            };
            let mut volume = Volume::clone(found);
            volume.job = None;
            volume.updated_at = at;
            if volume.delete_on_stop {
                volume.state = VolumeState::Destroyed;
            }
            self.store_volume(at, volume);
        }
    }

    /// It stays, and with the job that has it, but no other job gets it.
    pub(crate) fn decommission_volume(
        &mut self,
        at: Timestamp,
        app: AppId,
        id: VolumeId,
    ) -> Result<(), Rejection> {
        let found = self.volumes.get(&id).filter(|volume| volume.app == Some(app));
        let found = found.ok_or_else(|| Rejection::not_found(format!("volume {id}")))?;
        if found.decommissioned_at.is_none() {
            let mut volume = Volume::clone(found);
            volume.decommissioned_at = Some(at);
            volume.updated_at = at;
            self.store_volume(at, volume);
        }
        Ok(())
    }

    /// Its host may remove the files from here on.
    pub(crate) fn destroy_volume(&mut self, at: Timestamp, id: VolumeId) -> Result<(), Rejection> {
        let found = self
            .volumes
            .get(&id)
            .ok_or_else(|| Rejection::not_found(format!("volume {id}")))?;
        if let Some(holder) = self.volume_holder(found) {
            let message = format!(
                "volume {id} is attached to job {}, which runs",
                holder.reference()
            );
            return Err(Rejection::conflict(message));
        }
        if found.state != VolumeState::Destroyed {
            let mut volume = Volume::clone(found);
            volume.state = VolumeState::Destroyed;
            volume.job = None;
            volume.updated_at = at;
            self.store_volume(at, volume);
        }
        Ok(())
    }

    pub(crate) fn destroy_volumes_of(&mut self, at: Timestamp, app: AppId) -> Result<(), Rejection> {
        let volumes: Vec<_> = self.volumes_of(app).map(|volume| volume.id).collect();
        volumes
            .into_iter()
            .try_for_each(|volume| self.destroy_volume(at, volume))
    }

    /// Level-triggered: hosts say it again after every interruption.
    pub(crate) fn report_volume(
        &mut self,
        at: Timestamp,
        host: &HostId,
        id: VolumeId,
        report: VolumeReport,
    ) -> Result<(), Rejection> {
        let Some(found) = self.volumes.get(&id).filter(|volume| volume.host_id == *host) else {
            return Ok(());
        };
        match (report, found.state) {
            (VolumeReport::Created, VolumeState::Pending) => {
                let mut volume = Volume::clone(found);
                volume.state = VolumeState::Created;
                volume.updated_at = at;
                self.store_volume(at, volume);
            }
            (VolumeReport::Removed, VolumeState::Destroyed) => {
                self.volumes.remove(&id);
            }
            _ => {}
        }
        Ok(())
    }

    /// What was on a host that was removed from the cluster is out of reach for ever.
    pub(crate) fn forget_volumes_on(&mut self, at: Timestamp, host: &HostId) {
        let gone: Vec<_> = self
            .volumes
            .values()
            .filter(|volume| volume.host_id == *host)
            .cloned()
            .collect();
        for found in gone {
            if found.state != VolumeState::Destroyed {
                let mut volume = Volume::clone(&found);
                volume.state = VolumeState::Destroyed;
                volume.updated_at = at;
                self.store_volume(at, volume);
            }
            self.volumes.remove(&found.id);
        }
    }

    fn store_volume(&mut self, at: Timestamp, volume: Volume) {
        let volume = Arc::new(volume);
        self.volumes.insert(volume.id, volume.clone());
        self.emit(at, volume.app, Subject::Volume { volume });
    }
}
