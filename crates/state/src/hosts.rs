//! Hosts: who they are, and whether they are heard of.

use std::sync::Arc;

use types::{Host, HostId, HostState, Timestamp};

use crate::{State, command::Rejection};

impl State {
    pub(crate) fn put_host(&mut self, at: Timestamp, mut host: Host) -> Result<(), Rejection> {
        let known = self.hosts.get(&host.id).map(|known| &**known);
        host.follow_up(known, at);
        if let Some(known) = known {
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

    pub(crate) fn set_host_state(
        &mut self,
        at: Timestamp,
        id: &HostId,
        state: HostState,
    ) -> Result<(), Rejection> {
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
            if state == HostState::Up {
                host.follow_up(Some(found), at);
            }
            self.hosts.insert(id.clone(), Arc::new(host));
        }
        Ok(())
    }
}
