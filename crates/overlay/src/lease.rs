//! Who has which address, and which number an app goes by on this host.
//!
//! Both are given out round robin: an address or number that just became free is taken again only after
//! all others, so that a late packet, a cached name or a half-open connection of the old job does not
//! reach a new one. What is in use is told at the start ([`Leases::new`]), never read from the kernel.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{Error, Subnet};

/// One job's place in the network. The owner keeps it with the job and hands it back after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub slot: u32,
    pub address: Ipv4Addr,
    /// Jobs of the same app may talk to each other. Any text that names the app for good, its id for example.
    pub app: String,
    /// The app's number on this host: the interface group of its jobs' links.
    pub group: u32,
}

/// Interface groups are the machine's, and small numbers may be in use by its administrator. Only links with
/// our name prefix are compared, so a collision is harmless to us; this keeps `ip link set group 1 down` harmless too.
pub(crate) const GROUP_FIRST: u32 = 0x0f1a_0001;
pub(crate) const GROUP_LAST: u32 = 0x0f1a_ffff;

/// The address book of this host, without any effect on the kernel.
#[derive(Clone, Debug)]
pub struct Leases {
    subnet: Subnet,
    by_slot: BTreeMap<u32, Lease>,
    apps: BTreeMap<String, App>,
    apps_by_group: BTreeMap<u32, String>,
    slot_last: u32,
    group_last: u32,
}

#[derive(Clone, Debug)]
struct App {
    group: u32,
    jobs: u32,
}

impl Leases {
    pub fn new(subnet: Subnet, in_use: impl IntoIterator<Item = Lease>) -> Result<Leases, Error> {
        let mut leases = Leases {
            subnet,
            by_slot: BTreeMap::new(),
            apps: BTreeMap::new(),
            apps_by_group: BTreeMap::new(),
            slot_last: subnet.job_slots().end - 1,
            group_last: GROUP_LAST,
        };
        for lease in in_use {
            leases.adopt(&lease)?;
        }
        // Going on after the highest is the best guess at what was given out last.
        if let Some(slot) = leases.by_slot.keys().next_back() {
            leases.slot_last = *slot;
        }
        if let Some(group) = leases.apps_by_group.keys().next_back() {
            leases.group_last = *group;
        }
        Ok(leases)
    }

    /// A free address for a job of `app`.
    pub fn allocate(&mut self, app: &str) -> Result<Lease, Error> {
        let slots = self.subnet.job_slots();
        let slot = next_free(slots.start, slots.end - 1, self.slot_last, |slot| {
            self.by_slot.contains_key(&slot)
        })
        .ok_or(Error::SubnetFull(self.subnet))?;
        let is_new_app = !self.apps.contains_key(app);
        let group = match self.apps.get(app) {
            Some(app) => app.group,
            // Never full before the subnet is: an app has at least one address, and no subnet has more than groups.
            None => next_free(GROUP_FIRST, GROUP_LAST, self.group_last, |group| {
                self.apps_by_group.contains_key(&group)
            })
            .ok_or(Error::SubnetFull(self.subnet))?,
        };
        let lease = Lease {
            slot,
            address: self.subnet.address(slot),
            app: app.into(),
            group,
        };
        self.adopt(&lease)?;
        self.slot_last = slot;
        if is_new_app {
            self.group_last = group;
        }
        Ok(lease)
    }

    /// Takes note of a lease given out before. Doing so twice is nothing; contradicting another is an error.
    pub fn adopt(&mut self, lease: &Lease) -> Result<(), Error> {
        let conflict = |reason: String| {
            Err(Error::LeaseConflict {
                slot: lease.slot,
                app: lease.app.clone(),
                reason,
            })
        };
        if let Some(known) = self.by_slot.get(&lease.slot) {
            return if known == lease {
                Ok(())
            } else {
                conflict(format!("the slot is leased to app {}", known.app))
            };
        }
        if !self.subnet.job_slots().contains(&lease.slot) || self.subnet.address(lease.slot) != lease.address
        {
            return conflict(format!(
                "{} is not slot {} of {}",
                lease.address, lease.slot, self.subnet
            ));
        }
        if !(GROUP_FIRST..=GROUP_LAST).contains(&lease.group) {
            return conflict(format!("group {} is not one of ours", lease.group));
        }
        if let Some(app) = self.apps.get(&lease.app)
            && app.group != lease.group
        {
            return conflict(format!(
                "the app goes by group {}, not {}",
                app.group, lease.group
            ));
        }
        if let Some(app) = self.apps_by_group.get(&lease.group)
            && *app != lease.app
        {
            return conflict(format!("group {} is app {app}", lease.group));
        }
        self.apps
            .entry(lease.app.clone())
            .or_insert(App {
                group: lease.group,
                jobs: 0,
            })
            .jobs += 1;
        self.apps_by_group.insert(lease.group, lease.app.clone());
        self.by_slot.insert(lease.slot, lease.clone());
        Ok(())
    }

    /// Gives the address back. `false` if it was not leased like this.
    pub fn release(&mut self, lease: &Lease) -> bool {
        if self.by_slot.get(&lease.slot) != Some(lease) {
            return false;
        }
        self.by_slot.remove(&lease.slot);
        let app = self
            .apps
            .get_mut(&lease.app)
            .expect("every lease counts for its app");
        app.jobs -= 1;
        if app.jobs == 0 {
            self.apps.remove(&lease.app);
            self.apps_by_group.remove(&lease.group);
        }
        true
    }

    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.by_slot.values()
    }

    pub fn get(&self, slot: u32) -> Option<&Lease> {
        self.by_slot.get(&slot)
    }

    /// The number of an app that has a job here.
    pub fn group(&self, app: &str) -> Option<u32> {
        self.apps.get(app).map(|app| app.group)
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = u32> {
        self.apps_by_group.keys().copied()
    }
}

/// The first free number after `last`, going round from `end` to `start` (both included).
fn next_free(start: u32, end: u32, last: u32, is_taken: impl Fn(u32) -> bool) -> Option<u32> {
    (last.saturating_add(1)..=end)
        .chain(start..=last.min(end))
        .find(|number| !is_taken(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leases() -> Leases {
        Leases::new("100.100.0.0/28".parse().unwrap(), []).unwrap()
    }

    #[test]
    fn addresses_are_given_out_in_turn_and_a_freed_one_comes_last() {
        let mut leases = leases();
        let first = leases.allocate("a").unwrap();
        assert_eq!((first.slot, first.address), (2, Ipv4Addr::new(100, 100, 0, 2)));
        assert!(leases.release(&first));
        let later: Vec<u32> = (0..13).map(|_| leases.allocate("a").unwrap().slot).collect();
        assert_eq!(later, [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 2]);
        assert!(matches!(leases.allocate("a"), Err(Error::SubnetFull(_))));
    }

    #[test]
    fn an_app_keeps_its_number_while_it_has_a_job_and_a_new_app_gets_a_fresh_one() {
        let mut leases = leases();
        let a = leases.allocate("a").unwrap();
        let b = leases.allocate("b").unwrap();
        assert_ne!(a.group, b.group);
        assert_eq!(leases.allocate("a").unwrap().group, a.group);
        assert!(leases.release(&b));
        assert_ne!(leases.allocate("c").unwrap().group, b.group);
    }

    #[test]
    fn leases_told_at_the_start_are_respected() {
        let mut old = leases();
        let kept: Vec<Lease> = ["a", "b", "a"]
            .iter()
            .map(|app| old.allocate(app).unwrap())
            .collect();
        let mut new = Leases::new("100.100.0.0/28".parse().unwrap(), kept.clone()).unwrap();
        let next = new.allocate("b").unwrap();
        assert_eq!((next.slot, next.group), (5, kept[1].group));
        assert!(
            !kept
                .iter()
                .any(|lease| lease.group == new.clone().allocate("c").unwrap().group)
        );
    }

    #[test]
    fn contradictions_are_refused_and_repetition_is_not() {
        let mut leases = leases();
        let a = leases.allocate("a").unwrap();
        leases.adopt(&a).unwrap();
        for wrong in [
            Lease {
                app: "b".into(),
                ..a.clone()
            },
            Lease { slot: 9, ..a.clone() },
            Lease {
                slot: 9,
                address: Ipv4Addr::new(100, 100, 0, 9),
                group: a.group + 1,
                ..a.clone()
            },
            Lease {
                slot: 9,
                address: Ipv4Addr::new(100, 100, 0, 9),
                app: "b".into(),
                ..a.clone()
            },
            Lease {
                slot: 1,
                address: Ipv4Addr::new(100, 100, 0, 1),
                ..a.clone()
            },
        ] {
            assert!(leases.adopt(&wrong).is_err(), "{wrong:?}");
            assert!(!leases.release(&wrong));
        }
        assert!(leases.release(&a));
        assert!(!leases.release(&a));
    }
}
