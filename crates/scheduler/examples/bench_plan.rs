//! How fast plans are made, for clusters of growing size:
//! `cargo run --release -p scheduler --example bench_plan`.
//!
//! For each size: a first plan that places every job, a new leader's first look at the settled cluster, and what
//! its planner takes from then on: with nothing changed, with one app scaled up, and after one host's death.
//! Milliseconds of one core; tables are built before the clock starts.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "measures time"
)]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use scheduler::{Action, Cluster, Planner};
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
            is_draining: false,
            state: HostState::Up,
            memory_bytes: 64 << 30,
            cpu_milli: 32_000,
            gateway: None,
            subnet: None,
            underlay: None,
            public_key: None,
            node: None,
            peer_addr: None,
            public_addresses: vec![],
            version: String::new(),
            created_at: now,
            started_at: now,
            up_since: Timestamp::EPOCH,
            relapses: 0,
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

/// Time that this thread was on a processor: the machine may have other things to do.
fn on_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel counts this");
    let nanoseconds = text.split(' ').next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanoseconds.expect("a number"))
}

fn timed(planner: &mut Planner, cluster: &Cluster, now: Timestamp) -> (Vec<Action>, Duration) {
    let start = on_processor();
    let plan = planner.plan(cluster, now);
    (plan.actions, on_processor().saturating_sub(start))
}

fn placements(actions: &[Action]) -> usize {
    let placed = |action: &&Action| matches!(action, Action::PlaceJob { .. });
    actions.iter().filter(placed).count()
}

fn in_ms(took: Duration) -> String {
    format!("{:.1}", took.as_secs_f64() * 1000.0)
}

fn main() {
    let now = Timestamp::from_system(SystemTime::now());
    println!(
        "{:>6} {:>6} {:>8} {:>12} {:>12} {:>14} {:>10} {:>10} {:>14}",
        "hosts",
        "apps",
        "jobs",
        "place all ms",
        "per second",
        "first look ms",
        "settled ms",
        "scaled ms",
        "host's death ms"
    );
    for (hosts, apps, jobs) in SIZES {
        let mut cluster = cluster(hosts, apps, jobs, now);
        let (actions, first) = timed(&mut Planner::default(), &cluster, now);
        let placed = placements(&actions);
        settle(&mut cluster, &actions, now);
        let mut planner = Planner::default();
        let (actions, look) = timed(&mut planner, &cluster, now);
        assert!(actions.is_empty(), "a settled cluster stays still");
        let (actions, settled) = timed(&mut planner, &cluster, now);
        assert!(actions.is_empty(), "a settled cluster stays still");

        let key = *cluster.formations.keys().next().expect("a formation");
        let formation = Arc::make_mut(cluster.formations.get_mut(&key).expect("a formation"));
        formation.processes.values_mut().for_each(|count| *count += 1);
        let (actions, scaled) = timed(&mut planner, &cluster, now);
        assert_eq!(placements(&actions), 1);
        settle(&mut cluster, &actions, now);
        planner.plan(&cluster, now);

        cluster
            .hosts
            .remove(&"host0".parse::<HostId>().expect("a host id"));
        let (actions, death) = timed(&mut planner, &cluster, now);
        println!(
            "{hosts:>6} {apps:>6} {placed:>8} {:>12} {:>12.0} {:>14} {:>10} {:>10} {:>14}, {} moved",
            in_ms(first),
            placed as f64 / first.as_secs_f64(),
            in_ms(look),
            in_ms(settled),
            in_ms(scaled),
            in_ms(death),
            placements(&actions),
        );
    }
}
