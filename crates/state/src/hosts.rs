//! Hosts: who they are, and whether they are heard of.

use std::sync::Arc;

use types::{Host, HostId, HostState};

use crate::{State, command::Rejection};

impl State {
    pub(crate) fn put_host(&mut self, mut host: Host) -> Result<(), Rejection> {
        if let Some(known) = self.hosts.get(&host.id) {
            host.created_at = known.created_at;
            // Only operators change it; a host that starts anew does not know.
            host.is_draining = known.is_draining;
        }
        self.hosts.insert(host.id.clone(), Arc::new(host));
        Ok(())
    }

    pub(crate) fn set_host_draining(&mut self, id: &HostId, is_draining: bool) -> Result<(), Rejection> {
        let found = self
            .hosts
            .get(id)
            .ok_or_else(|| Rejection::not_found(format!("host {id}")))?;
        if found.is_draining != is_draining {
            let mut host = Host::clone(found);
            host.is_draining = is_draining;
            self.hosts.insert(id.clone(), Arc::new(host));
        }
        Ok(())
    }

    pub(crate) fn set_host_state(&mut self, id: &HostId, state: HostState) -> Result<(), Rejection> {
        let found = self
            .hosts
            .get(id)
            .ok_or_else(|| Rejection::not_found(format!("host {id}")))?;
        // A second report of the same absence must not restart the wait.
        let unchanged = matches!(
            (found.state, state),
            (HostState::Up, HostState::Up) | (HostState::Silent { .. }, HostState::Silent { .. })
        );
        if !unchanged {
            let mut host = Host::clone(found);
            host.state = state;
            self.hosts.insert(id.clone(), Arc::new(host));
        }
        Ok(())
    }
}
