//! Backups of the cluster: that there was one, and how it ended.

use std::sync::Arc;

use types::{ClusterBackup, Timestamp};

use crate::{State, command::Rejection, event::Subject};

impl State {
    pub(crate) fn put_backup(&mut self, at: Timestamp, mut backup: ClusterBackup) -> Result<(), Rejection> {
        backup.updated_at = at;
        let backup = Arc::new(backup);
        self.last_backup = Some(backup.clone());
        self.emit(at, None, Subject::ClusterBackup { backup });
        Ok(())
    }
}
