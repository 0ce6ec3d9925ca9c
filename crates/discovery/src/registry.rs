//! Services and their instances.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use types::{AppId, Instance, LeaderType, ServiceMeta, ServiceRow, Timestamp};

/// How long an instance that registered itself lives after its last heartbeat (the original's 10 s).
pub const LEASE: Duration = Duration::from_secs(10);

/// Instances that the jobs of one app may register on one host.
const OF_APP_MAX: usize = 1_000;

/// A service's instances, the oldest first; the oldest leads unless somebody else was made leader.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Service {
    pub instances: Vec<Instance>,
    pub leader: Option<String>,
    /// What else is known of it.
    pub row: Option<Arc<ServiceRow>>,
}

impl Service {
    pub fn leader(&self) -> Option<&Instance> {
        let find = |id: &String| self.instances.iter().find(|found| found.id == *id);
        let row = self.row.as_ref();
        if row.is_some_and(|row| row.leader_type == LeaderType::Manual) {
            return row.and_then(|row| row.leader.as_ref()).and_then(find);
        }
        self.leader.as_ref().and_then(find).or(self.instances.first())
    }

    pub fn meta(&self) -> Option<&ServiceMeta> {
        self.row.as_ref()?.meta.as_ref()
    }
}

/// What a change of a service looks like to who follows it.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Up(Instance),
    Update(Instance),
    Down(Instance),
    Leader(Instance),
    Meta(ServiceMeta),
}

/// Whose a service is, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    App(AppId),
    Platform,
    Nobody,
}

#[derive(Debug, Clone, Default)]
pub struct Registry {
    cluster: BTreeMap<String, Service>,
    registered: BTreeMap<String, BTreeMap<String, Registered>>,
    last_index: u64,
}

#[derive(Debug, Clone)]
struct Registered {
    instance: Instance,
    heard: Timestamp,
    /// Whose job it is; the platform's own parts have none.
    app: Option<AppId>,
}

/// Why an instance is not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    TooMany,
}

impl Registry {
    /// Replaces everything that the controller speaks for.
    pub fn set_cluster(&mut self, services: impl IntoIterator<Item = (String, Service)>) {
        self.cluster = services.into_iter().collect();
    }

    /// The app whose instances or wishes made the service known.
    pub fn owner(&self, service: &str) -> Owner {
        let of = |app: Option<AppId>| app.map_or(Owner::Platform, Owner::App);
        if let Some(found) = self.cluster.get(service) {
            if let Some(first) = found.instances.first() {
                return of(first.meta.get("FLYNN_APP_ID").and_then(|id| id.parse().ok()));
            }
            if let Some(row) = &found.row {
                return of(row.app);
            }
        }
        let registered = self
            .registered
            .get(service)
            .and_then(|instances| instances.values().next());
        registered.map_or(Owner::Nobody, |first| of(first.app))
    }

    /// Registers an instance, or keeps it alive. The first registration fixes its place in the queue
    /// for leadership.
    pub fn register(
        &mut self,
        service: &str,
        mut instance: Instance,
        app: Option<AppId>,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let known = self
            .registered
            .get(service)
            .and_then(|known| known.get(&instance.id));
        instance.index = match known {
            Some(known) => known.instance.index,
            None => {
                let of_app = self.registered.values().flat_map(BTreeMap::values);
                if app.is_some() && of_app.filter(|found| found.app == app).count() >= OF_APP_MAX {
                    return Err(Refused::TooMany);
                }
                // The controller counts by time, too; what registers later is younger.
                self.last_index = (self.last_index + 1).max(now.as_micros().unsigned_abs());
                self.last_index
            }
        };
        let registered = Registered {
            heard: now,
            app,
            instance,
        };
        let instances = self.registered.entry(service.to_owned()).or_default();
        instances.insert(registered.instance.id.clone(), registered);
        Ok(())
    }

    pub fn unregister(&mut self, service: &str, id: &str) -> bool {
        let Some(instances) = self.registered.get_mut(service) else {
            return false;
        };
        let is_removed = instances.remove(id).is_some();
        if instances.is_empty() {
            self.registered.remove(service);
        }
        is_removed
    }

    /// Forgets everybody who registered with a service.
    pub fn unregister_all(&mut self, service: &str) -> bool {
        self.registered.remove(service).is_some()
    }

    /// Forgets who has not been heard of; when to look again.
    pub fn expire(&mut self, now: Timestamp) -> Option<Timestamp> {
        self.registered.retain(|_, instances| {
            instances.retain(|_, found| now.since(found.heard) < LEASE);
            !instances.is_empty()
        });
        let heard = self.registered.values().flat_map(BTreeMap::values);
        heard.map(|found| found.heard + LEASE).min()
    }

    /// The service as it is now; `None` if nobody knows it.
    pub fn service(&self, name: &str) -> Option<Service> {
        let (cluster, registered) = (self.cluster.get(name), self.registered.get(name));
        if cluster.is_none() && registered.is_none() {
            return None;
        }
        let mut service = cluster.cloned().unwrap_or_default();
        if let Some(registered) = registered {
            // Who came first to a name that turns out to be another app's does not stand beside that.
            let owner = self.owner(name);
            let is_own = |found: &&Registered| match (owner, found.app) {
                (Owner::App(owner), Some(app)) => owner == app,
                (Owner::Platform, Some(_)) => false,
                _ => true,
            };
            let own = registered.values().filter(is_own);
            service.instances.extend(own.map(|found| found.instance.clone()));
            service
                .instances
                .sort_by(|a, b| (a.index, &a.id).cmp(&(b.index, &b.id)));
            // The controller's choice is the oldest of those that it knows.
            service.leader = None;
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
    if let Some(meta) = after.meta()
        && before.meta() != Some(meta)
    {
        changes.push(Change::Meta(meta.clone()));
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

    fn service(ids: &[&str], row: Option<ServiceRow>) -> Service {
        Service {
            instances: ids
                .iter()
                .zip(1..)
                .map(|(id, index)| instance(id, index))
                .collect(),
            leader: None,
            row: row.map(Arc::new),
        }
    }

    #[test]
    fn who_stops_its_heartbeat_is_forgotten_and_the_next_oldest_leads() {
        let mut registry = Registry::default();
        let register = |registry: &mut Registry, id, seconds| {
            registry
                .register("db", instance(id, 0), None, at(seconds))
                .unwrap();
        };
        register(&mut registry, "a", 0);
        register(&mut registry, "b", 1);
        assert_eq!(ids(&registry), "a b leader a");
        register(&mut registry, "b", 9);
        assert_eq!(registry.expire(at(10)), Some(at(19)));
        assert_eq!(ids(&registry), "b leader b");
        register(&mut registry, "a", 11);
        assert_eq!(ids(&registry), "b a leader b", "who comes back queues up anew");
        assert_eq!(registry.expire(at(100)), None);
        assert_eq!(
            registry.service("db"),
            None,
            "a service without instances and row is none"
        );
    }

    #[test]
    fn the_clusters_instances_stay_until_the_controller_says_otherwise() {
        let mut registry = Registry::default();
        registry.set_cluster([("db".to_owned(), service(&["a", "b"], None))]);
        registry.expire(at(1_000_000));
        assert_eq!(ids(&registry), "a b leader a");
        registry.set_cluster([]);
        assert_eq!(registry.service("db"), None);
    }

    #[test]
    fn where_leaders_are_named_only_the_one_that_was_named_leads() {
        let row = |leader: Option<&str>| ServiceRow {
            name: "db".into(),
            leader_type: LeaderType::Manual,
            leader: leader.map(str::to_owned),
            ..ServiceRow::default()
        };
        let mut registry = Registry::default();
        registry.register("db", instance("a", 0), None, at(0)).unwrap();
        registry.register("db", instance("b", 0), None, at(0)).unwrap();
        for (leader, expected) in [
            (None, "a b leader "),
            (Some("b"), "a b leader b"),
            (Some("c"), "a b leader "),
        ] {
            registry.set_cluster([("db".to_owned(), service(&[], Some(row(leader))))]);
            assert_eq!(ids(&registry), expected);
        }
    }

    #[test]
    fn an_app_registers_nothing_beside_the_instances_of_another() {
        let app = |number| AppId(types::Uuid::from_u128(number));
        let mut registry = Registry::default();
        assert_eq!(registry.owner("db"), Owner::Nobody);
        registry
            .register("db", instance("squatter", 0), Some(app(1)), at(0))
            .unwrap();
        assert_eq!(registry.owner("db"), Owner::App(app(1)));
        let mut theirs = service(&["a"], None);
        theirs.instances[0]
            .meta
            .insert("FLYNN_APP_ID".into(), app(2).to_string());
        registry.set_cluster([("db".to_owned(), theirs)]);
        assert_eq!(registry.owner("db"), Owner::App(app(2)));
        assert_eq!(ids(&registry), "a leader a");
    }

    #[test]
    fn followers_hear_of_a_leader_after_it_is_up() {
        let before = Service {
            instances: vec![instance("a", 1), instance("b", 2)],
            ..Service::default()
        };
        let after = Service {
            instances: vec![instance("b", 2), instance("c", 3)],
            leader: Some("c".into()),
            row: None,
        };
        let (a, c) = (instance("a", 1), instance("c", 3));
        assert_eq!(
            changes(&before, &after),
            [Change::Up(c.clone()), Change::Down(a), Change::Leader(c)]
        );
        assert_eq!(changes(&after, &after), []);
    }
}
