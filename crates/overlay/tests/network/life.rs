//! Opening, opening again, attaching twice, leaving nothing.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::world::*;
use overlay::{Attached, Error, Network};

#[test]
fn opening_again_repairs_and_keeps_connections() {
    in_new_machine(|| async {
        let outside = outside();
        let config = config("t0", "100.100.0.0/24");
        let network = open(&config).await;
        let (a1, a1_lease) = attached(&network, "a").await;
        let (a2, a2_lease) = attached(&network, "a").await;
        let (b1, b1_lease) = attached(&network, "b").await;
        let (inner, outer) = (a2.listen(8080), outside.listen(8080));
        let _b1_server = b1.listen(8080);
        let mut pairs = [(a2_lease.address, inner), (OUTSIDE, outer)].map(|(address, server)| {
            (
                a1.connect(address, 8080).unwrap(),
                server.accept().unwrap().0,
                server,
            )
        });

        let leases = network.leases();
        drop(network);
        // Worse than any crash leaves it.
        run("ip link del t0");
        run("ip route del unreachable 100.100.0.0/24");
        run("nft delete chain inet flynn_t0 forward");
        a1.run("ip route del default");
        let network = Network::open(config.clone(), leases.clone(), overlay::Map::default())
            .await
            .unwrap();
        assert_eq!(network.leases(), leases);
        for (job, lease) in [(&a1, &a1_lease), (&a2, &a2_lease), (&b1, &b1_lease)] {
            assert_eq!(network.attach(job.pid(), lease).await.unwrap(), Attached::Already);
        }
        for (client, accepted, _) in &mut pairs {
            client.write_all(b"ping").unwrap();
            accepted.read_exact(&mut [0; 4]).unwrap();
        }
        a1.connect(a2_lease.address, 8080).unwrap();
        assert!(a1.is_refused(b1_lease.address, 8080));
        assert!(network.diagnose().await.unwrap().is_empty());
    });
}

#[test]
fn what_another_program_takes_away_is_put_back() {
    in_new_machine(|| async {
        let before = inventory();
        let network = open(&config("t0", "100.100.0.0/24")).await;
        let (a1, _) = attached(&network, "a").await;
        let (a2, a2_lease) = attached(&network, "a").await;
        let (b1, b1_lease) = attached(&network, "b").await;
        let _servers = (a2.listen(8080), b1.listen(8080));
        assert!(!network.repair().await.unwrap());
        for damage in [
            "nft flush ruleset",
            "ip link del t0",
            "nft delete chain inet flynn_t0 postrouting",
        ] {
            run(damage);
            assert!(network.repair().await.unwrap(), "{damage}");
            assert!(!network.repair().await.unwrap(), "{damage}");
            a1.connect(a2_lease.address, 8080).unwrap();
            assert!(a1.is_refused(b1_lease.address, 8080));
        }
        run("nft flush ruleset");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        assert!(network.repair().await.unwrap());
        Network::teardown(network.config()).await.unwrap();
        assert_eq!(
            inventory(),
            before,
            "what ip_forward was is known even if the table was lost meanwhile"
        );
    });
}

#[test]
fn a_failed_change_is_made_good_by_the_next() {
    in_new_machine(|| async {
        let network = open(&config("t0", "100.100.0.0/24")).await;
        let (_a1, a1) = attached(&network, "a").await;
        run("nft flush set inet flynn_t0 links");
        network
            .detach(&a1)
            .await
            .expect_err("the element to delete is gone");
        let (b1, _) = attached(&network, "b").await;
        let (b2, b2_lease) = attached(&network, "b").await;
        let _server = b2.listen(8080);
        b1.connect(b2_lease.address, 8080).unwrap();
    });
}

#[test]
fn teardown_leaves_the_machine_as_it_was() {
    in_new_machine(|| async {
        let _outside = outside();
        run("nft add table inet theirs");
        let before = inventory();
        let config = config("t0", "100.100.0.0/24");
        let network = open(&config).await;
        let (job, _) = attached(&network, "a").await;
        assert!(inventory().contains("ip_forward 1"));
        // Twice opened, the value from before the first time is the one to go back to.
        let network = Network::open(config.clone(), network.leases(), overlay::Map::default())
            .await
            .unwrap();
        drop(network);
        Network::teardown(&config).await.unwrap();
        assert_eq!(inventory(), before);
        assert!(!job.run("ip -o link").contains("eth0"));
        Network::teardown(&config)
            .await
            .expect("a second time is nothing");
        assert_eq!(inventory(), before);
    });
}

#[test]
fn clusters_side_by_side_do_not_reach_each_other_and_end_alone() {
    in_new_machine(|| async {
        let outside = outside();
        let server = outside.listen(8080);
        let before = inventory();
        let (one, two) = (config("t0", "100.100.0.0/24"), config("t1", "100.100.1.0/24"));
        let (first, second) = (open(&one).await, open(&two).await);
        let (a, a_lease) = attached(&first, "a").await;
        let (b, b_lease) = attached(&second, "a").await;
        let _servers = (a.listen(8080), b.listen(8080));
        let _gateways = std::net::TcpListener::bind("0.0.0.0:80").unwrap();
        a.connect(one.subnet.gateway(), 80).unwrap();
        assert!(a.is_refused(two.subnet.gateway(), 80));
        a.connect(OUTSIDE, 8080).unwrap();
        server.accept().unwrap();
        assert_eq!((a_lease.slot, b_lease.slot), (2, 2));
        assert!(a.is_refused(b_lease.address, 8080) && b.is_refused(a_lease.address, 8080));

        Network::teardown(&one).await.unwrap();
        b.connect(OUTSIDE, 8080).expect("the other cluster goes on");
        assert!(second.diagnose().await.unwrap().is_empty());
        Network::teardown(&two).await.unwrap();
        assert_eq!(
            inventory(),
            before,
            "the last one restores what was before the first"
        );
    });
}

#[test]
fn what_is_not_ours_is_not_taken() {
    in_new_machine(|| async {
        let _outside = outside();
        let mut taken = config("t0", "198.51.100.0/24");
        let refused = |config: overlay::Config| async move {
            Network::open(config, [], overlay::Map::default())
                .await
                .err()
                .unwrap()
        };
        assert!(matches!(refused(taken.clone()).await, Error::SubnetInUse { .. }));
        taken.subnet = "100.100.0.0/24".parse().unwrap();
        taken.interface_prefix = "up0".into();
        assert!(matches!(refused(taken).await, Error::InterfaceInUse { .. }));

        let network = open(&config("t0", "100.100.0.0/24")).await;
        let lease = network.allocate("a").unwrap();
        let own = nix::unistd::gettid().as_raw() as u32;
        assert!(matches!(
            network.attach(own, &lease).await,
            Err(Error::NotIsolated { .. })
        ));
        let gone = {
            let job = Job::start();
            job.pid()
        };
        assert!(matches!(
            network.attach(gone, &lease).await,
            Err(Error::NamespaceGone { .. })
        ));
        let job = Job::start();
        job.run("ip link add eth0 type bridge");
        assert!(matches!(
            network.attach(job.pid(), &lease).await,
            Err(Error::NamespaceOccupied { .. })
        ));
        job.run("ip link del eth0");
        network.attach(job.pid(), &lease).await.unwrap();
    });
}

#[test]
fn a_dead_jobs_link_gives_way_and_leftovers_are_swept() {
    in_new_machine(|| async {
        let network = open(&config("t0", "100.100.0.0/24")).await;
        let (old, lease) = attached(&network, "a").await;
        // The old namespace is still held when its lease is used again.
        let new = Job::start();
        assert_eq!(network.attach(new.pid(), &lease).await.unwrap(), Attached::New);
        assert!(!old.run("ip -o link").contains("eth0"));
        let server = new.listen(8080);
        connect(lease.address, 8080).unwrap();
        server.accept().unwrap();

        let (kept, _) = attached(&network, "a").await;
        network.detach(&lease).await.unwrap();
        assert_eq!(network.sweep().await.unwrap(), ["t0-2"]);
        assert_eq!(network.sweep().await.unwrap(), [""; 0]);
        assert!(kept.run("ip -o link").contains("eth0"));
    });
}

#[test]
fn an_app_without_jobs_leaves_no_element() {
    in_new_machine(|| async {
        let network = open(&config("t0", "100.100.0.0/24")).await;
        let elements = || run("nft list set inet flynn_t0 links").matches(" . ").count() - 1;
        let (_a1, a1) = attached(&network, "a").await;
        let (_a2, a2) = attached(&network, "a").await;
        let (_b1, _) = attached(&network, "b").await;
        assert_eq!(elements(), 2);
        network.detach(&a1).await.unwrap();
        assert_eq!(elements(), 2);
        network.detach(&a2).await.unwrap();
        network.detach(&a2).await.unwrap();
        assert_eq!(elements(), 1);
    });
}

#[test]
fn a_foreign_policy_that_drops_is_found() {
    in_new_machine(|| async {
        let network = open(&config("t0", "100.100.0.0/24")).await;
        assert!(network.diagnose().await.unwrap().is_empty());
        run("nft add table ip filter");
        run("nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let findings = network.diagnose().await.unwrap();
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].problem.contains("chain FORWARD of table ip filter"));
        assert!(findings[0].hint.contains("-i t0-+ -j ACCEPT"));
    });
}

#[test]
fn a_hundred_jobs_are_attached_one_by_one_and_at_once() {
    in_new_machine(|| async {
        let network = std::sync::Arc::new(open(&config("t0", "100.100.0.0/22")).await);
        let (_first, _) = attached(&network, "a").await;
        let mut jobs = Vec::new();
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..100 {
            let job = Job::start();
            let start = Instant::now();
            let lease = network.allocate("a").unwrap();
            network.attach(job.pid(), &lease).await.unwrap();
            times.push(start.elapsed());
            jobs.push((job, lease));
        }
        times.sort();
        println!(
            "attach one by one: p50 {:?}, p90 {:?}, max {:?}",
            times[50], times[90], times[99]
        );

        let more: Vec<Job> = (0..100).map(|_| Job::start()).collect();
        let start = Instant::now();
        let tasks: Vec<_> = more
            .iter()
            .map(|job| {
                let (network, pid) = (network.clone(), job.pid());
                tokio::spawn(async move {
                    let lease = network.allocate("a").unwrap();
                    network.attach(pid, &lease).await.unwrap();
                    lease
                })
            })
            .collect();
        for (task, job) in tasks.into_iter().zip(more) {
            jobs.push((job, task.await.unwrap()));
        }
        println!("attach 100 at once: {:?} in all", start.elapsed());

        let mut addresses: Vec<_> = jobs.iter().map(|(_, lease)| lease.address).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 200);
        let (far, far_lease) = jobs.last().unwrap();
        let server = far.listen(8080);
        jobs[0].0.connect(far_lease.address, 8080).unwrap();
        server.accept().unwrap();
    });
}
