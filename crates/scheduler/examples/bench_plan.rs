//! How fast plans are made, for clusters of growing size:
//! `cargo run --release -p scheduler --example bench_plan`.
//!
//! For each size: a first plan that places every job, a plan of the settled cluster, and a plan
//! after one host's death. All on one core; tables are built before the clock starts.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "measures time"
)]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use scheduler::{Action, Cluster, plan};
use types::*;
use uuid::Uuid;

const SIZES: [(usize, usize, usize); 4] = [
    (10, 100, 1_000),
    (100, 1_000, 10_000),
    (1_000, 2_000, 100_000),
    (5_000, 10_000, 1_000_000),
];

fn id(kind: u64, n: usize) -> Uuid {
    Uuid::new_v5(&Uuid::from_u64_pair(kind, 0), &n.to_be_bytes())
}

fn cluster(hosts: usize, apps: usize, jobs: usize, now: Timestamp) -> Cluster {
    let mut cluster = Cluster {
        revision: 1,
        ..Cluster::default()
    };
    for n in 0..hosts {
        let host = Host {
            id: format!("host{n}").parse().expect("a host id"),
            addr: String::new(),
            tags: BTreeMap::new(),
            state: HostState::Up,
            memory_bytes: 64 << 30,
            cpu_milli: 32_000,
            gateway: None,
            subnet: None,
            underlay: None,
            public_key: None,
            node: None,
            peer_addr: None,
            version: String::new(),
            created_at: now,
            started_at: now,
        };
        cluster.hosts.insert(host.id.clone(), Arc::new(host));
    }
    for n in 0..apps {
        let (app, release) = (AppId(id(1, n)), ReleaseId(id(2, n)));
        let row = App {
            id: app,
            name: format!("app{n}"),
            meta: BTreeMap::new(),
            strategy: Strategy::AllAtOnce,
            release: Some(release),
            deploy_timeout: 120,
            created_at: now,
            updated_at: now,
        };
        cluster.apps.insert(app, Arc::new(row));
        let row = Release {
            id: release,
            app_id: app,
            artifacts: vec![],
            env: BTreeMap::new(),
            meta: BTreeMap::new(),
            processes: [("web".to_owned(), ProcessType::default())].into(),
            created_at: now,
        };
        cluster.releases.insert(release, Arc::new(row));
        let count = (jobs / apps) as u32;
        let processes = [("web".to_owned(), count)].into();
        let row = Formation {
            app,
            release,
            processes,
            tags: Tags::new(),
            created_at: now,
            updated_at: now,
        };
        cluster.formations.insert((app, release), Arc::new(row));
    }
    cluster
}

fn settle(cluster: &mut Cluster, actions: &[Action], now: Timestamp) {
    for action in actions {
        match action {
            Action::CreateJob { job, .. } => drop(cluster.jobs.insert(job.id, Arc::new(job.clone()))),
            Action::PlaceJob { job, host, .. } => {
                let row = Arc::make_mut(cluster.jobs.get_mut(job).expect("a created job"));
                row.state = JobState::Up;
                row.host = Some(host.clone());
                row.up_at = Some(now);
            }
            _ => {}
        }
    }
    cluster.revision += 1;
}

fn timed(cluster: &Cluster, now: Timestamp) -> (Vec<Action>, Duration) {
    let start = Instant::now();
    let plan = plan(cluster, now);
    (plan.actions, start.elapsed())
}

fn main() {
    let now = Timestamp::from_system(SystemTime::now());
    println!(
        "{:>6} {:>6} {:>8} {:>12} {:>14} {:>12} {:>16}",
        "hosts", "apps", "jobs", "first plan", "placements/s", "settled", "a host's death"
    );
    for (hosts, apps, jobs) in SIZES {
        let mut cluster = cluster(hosts, apps, jobs, now);
        let (actions, first) = timed(&cluster, now);
        let placed = actions
            .iter()
            .filter(|action| matches!(action, Action::PlaceJob { .. }))
            .count();
        settle(&mut cluster, &actions, now);
        let (actions, settled) = timed(&cluster, now);
        assert!(actions.is_empty(), "a settled cluster stays still");
        cluster
            .hosts
            .remove(&"host0".parse::<HostId>().expect("a host id"));
        let (actions, death) = timed(&cluster, now);
        let moved = actions
            .iter()
            .filter(|action| matches!(action, Action::PlaceJob { .. }))
            .count();
        let rate = placed as f64 / first.as_secs_f64();
        println!(
            "{hosts:>6} {apps:>6} {placed:>8} {:>9} ms {rate:>14.0} {:>9} ms {:>6} ms, {moved} moved",
            first.as_millis(),
            settled.as_millis(),
            death.as_millis(),
        );
    }
}
