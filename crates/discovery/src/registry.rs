//! Services and their instances.

use std::{collections::BTreeMap, time::Duration};

use types::{Instance, Timestamp};

/// How long an instance that registered itself lives after its last heartbeat (the original's 10 s).
pub const LEASE: Duration = Duration::from_secs(10);

/// A service's instances, the oldest first; the oldest leads unless somebody else was made leader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    pub instances: Vec<Instance>,
    pub leader: Option<String>,
}

impl Service {
    pub fn leader(&self) -> Option<&Instance> {
        let named = self
            .leader
            .as_ref()
            .and_then(|id| self.instances.iter().find(|found| found.id == *id));
        named.or(self.instances.first())
    }
}

/// What a change of a service looks like to who follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Up(Instance),
    Update(Instance),
    Down(Instance),
    Leader(Instance),
}

#[derive(Debug, Clone, Default)]
pub struct Registry {
    cluster: BTreeMap<String, Service>,
    registered: BTreeMap<String, Registered>,
    last_index: u64,
}

#[derive(Debug, Clone, Default)]
struct Registered {
    instances: BTreeMap<String, (Instance, Timestamp)>,
    manual_leader: Option<String>,
}

impl Registry {
    /// Replaces all instances that the controller speaks for.
    pub fn set_cluster(&mut self, services: impl IntoIterator<Item = (String, Service)>) {
        self.cluster = services.into_iter().collect();
    }

    /// Makes a service known before it has instances.
    pub fn create(&mut self, service: &str) {
        self.registered.entry(service.to_owned()).or_default();
    }

    pub fn remove(&mut self, service: &str) -> bool {
        self.registered.remove(service).is_some()
    }

    /// Registers an instance, or keeps it alive. The first registration fixes its place in the queue
    /// for leadership.
    pub fn register(&mut self, service: &str, mut instance: Instance, now: Timestamp) {
        let registered = self.registered.entry(service.to_owned()).or_default();
        instance.index = match registered.instances.get(&instance.id) {
            Some((known, _)) => known.index,
            None => {
                self.last_index += 1;
                self.last_index
            }
        };
        registered.instances.insert(instance.id.clone(), (instance, now));
    }

    pub fn unregister(&mut self, service: &str, id: &str) -> bool {
        let registered = self.registered.get_mut(service);
        registered.is_some_and(|registered| registered.instances.remove(id).is_some())
    }

    /// Makes an instance that registered itself leader, until another is.
    pub fn set_leader(&mut self, service: &str, id: &str) -> bool {
        match self.registered.get_mut(service) {
            Some(registered) if registered.instances.contains_key(id) => {
                registered.manual_leader = Some(id.to_owned());
                true
            }
            _ => false,
        }
    }

    /// Forgets who has not been heard of; when to look again.
    pub fn expire(&mut self, now: Timestamp) -> Option<Timestamp> {
        for registered in self.registered.values_mut() {
            registered
                .instances
                .retain(|_, (_, heard)| now.since(*heard) < LEASE);
        }
        let heard = self
            .registered
            .values()
            .flat_map(|registered| registered.instances.values());
        heard.map(|(_, heard)| *heard + LEASE).min()
    }

    /// The service as it is now; `None` if nobody knows it.
    pub fn service(&self, name: &str) -> Option<Service> {
        let (cluster, registered) = (self.cluster.get(name), self.registered.get(name));
        if cluster.is_none() && registered.is_none() {
            return None;
        }
        let mut service = cluster.cloned().unwrap_or_default();
        if let Some(registered) = registered {
            service.instances.extend(
                registered
                    .instances
                    .values()
                    .map(|(instance, _)| instance.clone()),
            );
            service
                .instances
                .sort_by(|a, b| (a.index, &a.id).cmp(&(b.index, &b.id)));
            service.leader = registered.manual_leader.clone().or(service.leader);
        }
        Some(service)
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .cluster
            .keys()
            .chain(self.registered.keys())
            .cloned()
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// What happened between two looks at a service, in an order in which a leader is up before it leads.
pub fn changes(before: &Service, after: &Service) -> Vec<Change> {
    let find = |service: &Service, id: &str| service.instances.iter().find(|found| found.id == id).cloned();
    let mut changes = vec![];
    for instance in &after.instances {
        match find(before, &instance.id) {
            None => changes.push(Change::Up(instance.clone())),
            Some(known) if known != *instance => changes.push(Change::Update(instance.clone())),
            Some(_) => {}
        }
    }
    for instance in &before.instances {
        if find(after, &instance.id).is_none() {
            changes.push(Change::Down(instance.clone()));
        }
    }
    if let Some(leader) = after.leader()
        && before.leader().map(|former| &former.id) != Some(&leader.id)
    {
        changes.push(Change::Leader(leader.clone()));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, index: u64) -> Instance {
        let addr = format!("100.100.0.{index}:80");
        Instance {
            id: id.into(),
            addr,
            proto: "tcp".into(),
            meta: BTreeMap::new(),
            index,
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn ids(registry: &Registry) -> String {
        let service = registry.service("db").unwrap_or_default();
        let leader = service
            .leader()
            .map(|leader| leader.id.clone())
            .unwrap_or_default();
        let ids: Vec<_> = service.instances.iter().map(|found| found.id.as_str()).collect();
        format!("{} leader {leader}", ids.join(" "))
    }

    #[test]
    fn who_stops_its_heartbeat_is_forgotten_and_the_next_oldest_leads() {
        let mut registry = Registry::default();
        registry.register("db", instance("a", 0), at(0));
        registry.register("db", instance("b", 0), at(1));
        assert_eq!(ids(&registry), "a b leader a");
        registry.register("db", instance("b", 0), at(9));
        assert_eq!(registry.expire(at(10)), Some(at(19)));
        assert_eq!(ids(&registry), "b leader b");
        registry.register("db", instance("a", 0), at(11));
        assert_eq!(ids(&registry), "b a leader b", "who comes back queues up anew");
    }

    #[test]
    fn the_clusters_instances_stay_until_the_controller_says_otherwise() {
        let mut registry = Registry::default();
        let service = Service {
            instances: vec![instance("a", 1), instance("b", 2)],
            leader: Some("a".into()),
        };
        registry.set_cluster([("db".to_owned(), service)]);
        registry.expire(at(1_000_000));
        assert_eq!(ids(&registry), "a b leader a");
        registry.set_cluster([]);
        assert_eq!(registry.service("db"), None);
    }

    #[test]
    fn a_leader_can_be_named_among_those_registered() {
        let mut registry = Registry::default();
        registry.register("db", instance("a", 0), at(0));
        registry.register("db", instance("b", 0), at(0));
        assert!(registry.set_leader("db", "b"));
        assert!(!registry.set_leader("db", "nobody"));
        assert_eq!(ids(&registry), "a b leader b");
    }

    #[test]
    fn followers_hear_of_a_leader_after_it_is_up() {
        let before = Service {
            instances: vec![instance("a", 1), instance("b", 2)],
            leader: None,
        };
        let after = Service {
            instances: vec![instance("b", 2), instance("c", 3)],
            leader: Some("c".into()),
        };
        let (a, c) = (instance("a", 1), instance("c", 3));
        assert_eq!(
            changes(&before, &after),
            [Change::Up(c.clone()), Change::Down(a), Change::Leader(c)]
        );
        assert_eq!(changes(&after, &after), []);
    }
}
