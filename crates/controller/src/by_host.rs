//! The state sorted by host: what each host is told is looked up in it.
//!
//! It is made once for each version of the state, by the first host that is told of it, and shared by all others; each
//! host's own part is then as long as that host's jobs and not as the cluster's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex},
};

use api::host::NetworkHost;
use state::State;
use types::{AppId, HostId, Job, JobState};

use crate::ways::Ways;

#[derive(Debug, Default)]
pub struct ByHost {
    jobs: HashMap<HostId, Vec<Arc<Job>>>,
    addresses: HashMap<AppId, Vec<(IpAddr, HostId)>>,
    hosts: Arc<BTreeMap<HostId, NetworkHost>>,
    ways: Arc<Ways>,
    /// From each app that is linked to: the apps that may connect to it.
    linked_from: HashMap<AppId, Vec<AppId>>,
}

impl ByHost {
    /// `before` is the same of an earlier state, whose hosts are taken over where they are the same.
    pub fn new(state: &State, before: Option<&ByHost>) -> ByHost {
        let mut sorted = ByHost::default();
        for job in state.jobs.values().filter(|job| job.state != JobState::Down) {
            let Some(host) = &job.host else { continue };
            if let Some(address) = job.address {
                let addresses = sorted.addresses.entry(job.app).or_default();
                addresses.push((address, host.clone()));
            }
            sorted.jobs.entry(host.clone()).or_default().push(job.clone());
        }
        sorted.ways = Ways::new(state, before.map(|before| &before.ways));
        for (from, to) in sorted.ways.all() {
            sorted.linked_from.entry(*to).or_default().push(*from);
        }
        // Hosts that are silent stay: that they cannot be heard does not say that they cannot be reached.
        let hosts = state.hosts.values().filter_map(|host| {
            let network = NetworkHost {
                id: host.id.clone(),
                subnet: host.subnet.clone()?,
                underlay: host.underlay?,
                public_key: host.public_key.clone(),
            };
            Some((host.id.clone(), network))
        });
        let hosts: BTreeMap<_, _> = hosts.collect();
        sorted.hosts = match before {
            Some(before) if *before.hosts == hosts => before.hosts.clone(),
            _ => Arc::new(hosts),
        };
        sorted
    }

    /// Those that have not ended, in the order of their ids.
    pub fn jobs(&self, host: &HostId) -> &[Arc<Job>] {
        self.jobs.get(host).map_or(&[], Vec::as_slice)
    }

    /// The apps that these jobs are of.
    pub fn apps(&self, host: &HostId) -> BTreeSet<AppId> {
        self.jobs(host).iter().map(|job| job.app).collect()
    }

    /// Where jobs of an app, and of those that may connect to it, are on other hosts.
    pub fn sources<'a>(&'a self, app: AppId, host: &'a HostId) -> impl Iterator<Item = IpAddr> + 'a {
        let linked = self.linked_from.get(&app).into_iter().flatten().copied();
        linked
            .chain([app])
            .filter_map(|app| self.addresses.get(&app))
            .flatten()
            .filter(move |(_, of)| of != host)
            .map(|(address, _)| *address)
    }

    /// Every host that others can send packets of jobs to.
    pub fn hosts(&self) -> &Arc<BTreeMap<HostId, NetworkHost>> {
        &self.hosts
    }

    /// (from, to): jobs of the one app may connect to those of the other.
    pub fn links(&self) -> &BTreeSet<(AppId, AppId)> {
        self.ways.all()
    }
}

/// The newest that was made.
#[derive(Default)]
pub struct Cache(Mutex<Option<(Arc<State>, Arc<ByHost>)>>);

impl Cache {
    pub fn get(&self, state: &Arc<State>) -> Arc<ByHost> {
        let mut kept = self.0.lock().expect("nothing panics while it holds this");
        if let Some((of, sorted)) = &*kept
            && Arc::ptr_eq(of, state)
        {
            return sorted.clone();
        }
        let before = kept.as_ref().map(|(_, sorted)| sorted.clone());
        let sorted = Arc::new(ByHost::new(state, before.as_deref()));
        *kept = Some((state.clone(), sorted.clone()));
        sorted
    }
}
