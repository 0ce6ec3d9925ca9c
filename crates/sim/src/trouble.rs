//! What goes wrong, and what users ask for meanwhile.

use std::{collections::BTreeMap, time::Duration};

use state::Change;
use types::*;

use crate::{
    laws::Wish,
    world::{From, World},
};

const TYPES: [&str; 4] = ["web", "worker", "agent", "store"];
/// Long enough for elections, graces, starts and stops, one after the other.
const CALM: Duration = Duration::from_secs(90);

/// What is done to a world.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trouble {
    PowerOff(usize),
    PowerOn(usize),
    /// All of what goes to a machine and comes from it is lost.
    CutOff(usize),
    /// Only what one says to another.
    CutOneWay(usize, usize),
    Loss(u64),
    Heal,
}

impl World {
    /// A world with apps on it, settled.
    pub fn with_apps(seed: u64, machines: usize, skew: Duration) -> World {
        let mut world = World::new(seed, machines, skew);
        world.run(Duration::from_secs(5));
        for _ in 0..1 + world.random.below(3) {
            world.add_app();
        }
        world.run(CALM);
        world.check_settled();
        world
    }

    fn add_app(&mut self) {
        let leader = self.true_leader().expect("a calm world has a leader");
        let number = self.serial();
        let id = |kind: u128| Uuid::from_u128(kind << 64 | u128::from(number));
        let (app, release, artifact) = (AppId(id(1)), ReleaseId(id(2)), ArtifactId(id(3)));
        let at = self.clock_of(leader);
        let volume = VolumeRequest {
            path: "/data".into(),
            delete_on_stop: false,
        };
        let process = |name: &str| ProcessType {
            omni: name == "agent",
            volumes: if name == "store" {
                vec![volume.clone()]
            } else {
                vec![]
            },
            ..ProcessType::default()
        };
        let changes = vec![
            Change::CreateApp {
                app: App {
                    id: app,
                    name: format!("app{number}"),
                    meta: BTreeMap::new(),
                    strategy: Strategy::AllAtOnce,
                    release: None,
                    deploy_timeout: 120,
                    created_at: at,
                    updated_at: at,
                },
                route: None,
            },
            Change::CreateArtifact {
                artifact: artifact_row(artifact, at),
            },
            Change::CreateRelease {
                release: Release {
                    id: release,
                    app_id: app,
                    artifacts: vec![artifact],
                    env: BTreeMap::new(),
                    meta: BTreeMap::new(),
                    processes: TYPES.map(|name| (name.to_owned(), process(name))).into(),
                    created_at: at,
                },
            },
            Change::SetAppRelease { app, release },
        ];
        self.propose(leader, Change::All { changes }, From::User(0));
        self.run(Duration::from_millis(200));
        for name in TYPES {
            let count = self.random.below(4) as u32;
            self.scale(leader, (app, release), name, count);
        }
    }

    /// A user asks a machine for a count.
    pub fn scale(&mut self, asked: usize, key: (AppId, ReleaseId), process_type: &str, count: u32) {
        let wish = self.serial();
        self.tell(format!(
            "users ask host{asked} for {process_type}={count} of {}",
            key.1
        ));
        let change = Change::Scale {
            request: ScaleRequestId(Uuid::from_u128(5 << 64 | u128::from(wish))),
            app: key.0,
            release: key.1,
            processes: Some([(process_type.to_owned(), count)].into()),
            tags: None,
        };
        self.laws.wishes.insert(
            wish,
            Wish {
                key,
                process_type: process_type.to_owned(),
                count,
                is_acknowledged: false,
            },
        );
        if !self.propose(asked, change, From::User(wish)) {
            self.laws.wishes.remove(&wish);
        }
        // One after the other: of two at the same time either may be the last.
        self.run(Duration::from_millis(100));
    }

    pub fn make(&mut self, trouble: Trouble) {
        self.tell(format!("{trouble:?}"));
        match trouble {
            Trouble::PowerOff(machine) if self.machines[machine].is_on => self.switch_off(machine),
            Trouble::PowerOn(machine) if !self.machines[machine].is_on => self.switch_on(machine),
            Trouble::PowerOff(_) | Trouble::PowerOn(_) => {}
            Trouble::CutOff(machine) => {
                for other in (0..self.machines.len()).filter(|other| *other != machine) {
                    self.cuts.insert((machine, other));
                    self.cuts.insert((other, machine));
                }
            }
            Trouble::CutOneWay(from, to) => drop(self.cuts.insert((from, to))),
            Trouble::Loss(percent) => self.loss_percent = percent,
            Trouble::Heal => {
                self.cuts.clear();
                self.loss_percent = 0;
            }
        }
    }

    fn any_trouble(&mut self) {
        let count = self.machines.len();
        let one = self.random.below(count as u64) as usize;
        let other = (one + 1 + self.random.below(count as u64 - 1) as usize) % count;
        match self.random.below(16) {
            0..=1 => self.make(Trouble::PowerOff(one)),
            2..=4 => self.make(Trouble::PowerOn(one)),
            5 => self.make(Trouble::CutOff(one)),
            6 => self.make(Trouble::CutOneWay(one, other)),
            7..=8 => self.make(Trouble::Heal),
            9 => self.make(Trouble::Loss(30)),
            10..=13 => {
                let keys: Vec<_> = self.truth.formations.keys().copied().collect();
                let (key, name) = (self.random.pick(&keys), self.random.pick(&TYPES));
                if let (Some(key), Some(name)) = (key, name) {
                    let wanted = self.random.below(4) as u32;
                    self.scale(one, key, name, wanted);
                }
            }
            14 => {
                let host = self.machines[one].id.clone();
                let is_draining = self.random.one_in(2);
                self.tell(format!("operators drain {host}: {is_draining}"));
                self.propose(
                    other,
                    Change::SetHostDraining { host, is_draining },
                    From::User(0),
                );
            }
            _ => {
                for machine in 0..count {
                    self.make(Trouble::PowerOff(machine));
                }
            }
        }
    }

    /// Trouble for so many turns, then calm, in which all has to come right.
    pub fn suffer(&mut self, turns: usize) {
        for _ in 0..turns {
            self.any_trouble();
            let pause = self.random.millis(50, 6000);
            self.run(pause);
        }
        self.recover();
    }

    /// Everything has power and reaches everything, and at least one host takes jobs.
    pub fn recover(&mut self) {
        self.make(Trouble::Heal);
        for machine in 0..self.machines.len() {
            self.make(Trouble::PowerOn(machine));
        }
        self.run(Duration::from_secs(10));
        let leader = self
            .true_leader()
            .expect("machines that reach each other find a leader");
        let host = self.machines[0].id.clone();
        let undrain = Change::SetHostDraining {
            host,
            is_draining: false,
        };
        self.propose(leader, undrain, From::User(0));
        self.run(CALM);
        self.check_settled();
    }
}

fn artifact_row(id: ArtifactId, at: Timestamp) -> Artifact {
    Artifact {
        id,
        kind: ArtifactType::Flynn,
        uri: format!("flynn://sim/{id}"),
        meta: BTreeMap::new(),
        manifest: None,
        hashes: BTreeMap::new(),
        size: None,
        layer_url_template: String::new(),
        created_at: at,
    }
}
