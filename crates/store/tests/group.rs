//! Three nodes in one process: who leads, who dies, who catches up.

mod common;

use std::time::{Duration, Instant};

use common::*;
use store::*;

fn id(store: &Store<Notes>) -> u64 {
    store.status().node_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_elect_a_leader_and_all_apply_its_writes() {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    for number in 0..50 {
        assert_eq!(leader.write(put(number, "text")).await.unwrap(), number + 1);
    }
    group.converge(&leader).await;
    for node in group.nodes() {
        assert_eq!(*node.read(), *leader.read());
        assert_eq!(node.status().leader, Some(peer(id(&leader))));
        assert_eq!(node.status().voters, [peer(1), peer(2), peer(3)]);
    }
    let follower = group
        .nodes()
        .into_iter()
        .find(|node| id(node) != id(&leader))
        .unwrap();
    let error = follower.write(put("a", 1)).await.unwrap_err();
    assert!(
        matches!(&error, WriteError::NotLeader { leader: Some(to) } if to.id == id(&leader)),
        "{error}"
    );
    assert!(matches!(
        follower.read_linearizable().await,
        Err(ReadError::NotLeader { .. })
    ));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leader_dies_writes_go_on_and_it_catches_up_by_log() {
    let group = Group::of(3).await;
    let first = group.leader().await;
    first.write(put("before", 1)).await.unwrap();
    group.kill(id(&first)).await;
    let killed = Instant::now();
    let second = group.leader().await;
    second.write(put("between", 2)).await.unwrap();
    println!("writes again after {:?}", killed.elapsed());
    assert_ne!(id(&second), id(&first));
    assert!(second.read().notes.contains_key("before"));
    group.start(id(&first)).await;
    second.write(put("after", 3)).await.unwrap();
    group.converge(&second).await;
    assert_eq!(*group.node(id(&first)).read(), *second.read());
    assert_eq!(group.snapshots_sent(), 0);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_too_long_catches_up_by_snapshot() {
    let policy = SnapshotPolicy {
        entries: 100,
        log_bytes: 1 << 20,
        entries_kept: 10,
        log_bytes_kept: 1 << 20,
    };
    let group = Group::with_policy(3, policy, 2000).await;
    let leader = group.leader().await;
    let away = group
        .nodes()
        .into_iter()
        .map(|node| id(&node))
        .find(|node| *node != id(&leader))
        .unwrap();
    leader.write(put("first", 0)).await.unwrap();
    group.kill(away).await;
    for number in 0..250 {
        leader.write(put(number, "text")).await.unwrap();
    }
    leader.snapshot().await.unwrap();
    leader.write(put("last", 0)).await.unwrap();
    // The log is cut some time after the snapshot is there; a node that came back before that would
    // catch up by the log.
    let is_cut = async {
        while leader.status().purged_index.is_none_or(|index| index < 200) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), is_cut)
        .await
        .expect("the log is cut");
    group.start(away).await;
    group.converge(&leader).await;
    assert_eq!(*group.node(away).read(), *leader.read());
    assert!(group.snapshots_sent() > 0);
    // What came by snapshot is there after a restart, and the log goes on behind it.
    leader.write(put("later", 0)).await.unwrap();
    group.converge(&leader).await;
    group.kill(away).await;
    group.start(away).await;
    leader.write(put("latest", 0)).await.unwrap();
    group.converge(&leader).await;
    assert_eq!(*group.node(away).read(), *leader.read());
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_acknowledges_nothing_and_gives_in_when_it_is_back() {
    let group = Group::of(3).await;
    let old = group.leader().await;
    old.write(put("before", 1)).await.unwrap();
    group.isolate(id(&old));
    let lonely: Vec<_> = (0..20)
        .map(|number| {
            let old = old.clone();
            tokio::spawn(async move { old.write(put(format!("lonely {number}"), 1)).await })
        })
        .collect();
    let new = group.leader_but(&[id(&old)]).await;
    for number in 0..30 {
        new.write(put(number, "majority")).await.unwrap();
    }
    assert!(matches!(
        old.read_linearizable().await,
        Err(ReadError::NoQuorum | ReadError::NotLeader { .. })
    ));
    group.heal();
    for write in lonely {
        let result = write.await.unwrap();
        assert!(
            matches!(
                result,
                Err(WriteError::Unknown { .. } | WriteError::NotLeader { .. })
            ),
            "{result:?}"
        );
    }
    group.converge(&new).await;
    assert_eq!(*old.read(), *new.read());
    assert!(!new.read().notes.keys().any(|key| key.starts_with("lonely")));
    // The overruled entries are gone from its disk, too.
    group.kill(id(&old)).await;
    let old = group.start(id(&old)).await;
    new.write(put("after", 1)).await.unwrap();
    group.converge(&new).await;
    assert_eq!(*old.read(), *new.read());
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_shut_down_hands_over_first() {
    let group = Group::of(3).await;
    let old = group.leader().await;
    for number in 0..20 {
        old.write(put(number, "text")).await.unwrap();
    }
    let started = Instant::now();
    old.shutdown().await;
    let new = group.leader_but(&[id(&old)]).await;
    let took = started.elapsed();
    println!("handed over in {took:?}");
    new.write(put("after", 1)).await.unwrap();
    // Waiting for the dead would take an election timeout at least.
    assert!(took < Timing::default().election_max, "{took:?}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_grows_to_three_and_outlives_its_founder() {
    let group = Group::of(1).await;
    let founder = group.leader().await;
    founder.write(put("alone", 1)).await.unwrap();
    for new in [2, 3] {
        group.start(new).await;
        founder.add_learner(peer(new)).await.unwrap();
    }
    assert_eq!(founder.status().learners, [peer(2), peer(3)]);
    founder.set_voters([1, 2, 3].into()).await.unwrap();
    founder.write(put("together", 2)).await.unwrap();
    group.kill(1).await;
    let heir = group.leader().await;
    heir.write(put("without the founder", 3)).await.unwrap();
    assert_eq!(heir.read().commands, 3);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_while_nodes_die_in_turn_under_load() {
    let policy = SnapshotPolicy {
        entries: 500,
        log_bytes: 1 << 20,
        entries_kept: 50,
        log_bytes_kept: 1 << 16,
    };
    let group = std::sync::Arc::new(Group::with_policy(3, policy, 20_000).await);
    group.leader().await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (group, stopped) = (group.clone(), stopped.clone());
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for number in 0.. {
                    if *stopped.borrow() {
                        break;
                    }
                    let key = format!("{client}-{number}");
                    let leader = group.leader().await;
                    if leader.write(put(&key, "text")).await.is_ok() {
                        acknowledged.push(key);
                    }
                }
                acknowledged
            })
        })
        .collect();
    for round in 0..6 {
        let leader = group.leader().await;
        let victim = match round % 2 {
            0 => id(&leader),
            _ => id(&leader) % 3 + 1,
        };
        group.kill(victim).await;
        let leader = group.leader().await;
        let enough = leader.read().commands + 300;
        let mut views = leader.watch();
        let progress = views.wait_for(|view| view.commands >= enough);
        tokio::time::timeout(Duration::from_secs(30), progress)
            .await
            .expect("writes go on")
            .unwrap();
        group.start(victim).await;
    }
    stop.send_replace(true);
    let mut acknowledged = Vec::new();
    for client in clients {
        acknowledged.extend(client.await.unwrap());
    }
    let leader = group.leader().await;
    leader.read_linearizable().await.unwrap();
    group.converge(&leader).await;
    println!("{} acknowledged", acknowledged.len());
    for node in group.nodes() {
        assert_eq!(*node.read(), *leader.read());
        let state = node.read();
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|key| !state.notes.contains_key(*key))
            .collect();
        assert!(lost.is_empty(), "{lost:?}");
    }
    for node in group.nodes() {
        node.halt().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_nodes_may_found_the_same_group_and_agree_on_one_leader() {
    let group = Group::of(1).await;
    group.kill(1).await;
    let voters: Vec<Peer> = (11..=13).map(peer).collect();
    for voter in &voters {
        group.start_as(voter.id, Start::Found(voters.clone())).await;
    }
    // The one who founded last may take the lead over once; from then on it stays.
    let agreed = async {
        loop {
            let leader = group.leader().await;
            if leader.write(put("a", 1)).await.is_ok() {
                return leader;
            }
        }
    };
    let leader = tokio::time::timeout(Duration::from_secs(30), agreed)
        .await
        .unwrap();
    group.converge(&leader).await;
    for node in group.nodes() {
        assert_eq!(node.status().voters, voters);
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_knows_that_it_leads_nobody() {
    let group = Group::of(3).await;
    let first = group.leader().await;
    group.isolate(id(&first));
    let mut leads = first.leadership();
    tokio::time::timeout(Duration::from_secs(30), leads.wait_for(|leads| !*leads))
        .await
        .expect("it notices")
        .unwrap();
    let second = group.leader_but(&[id(&first)]).await;
    second.write(put("meanwhile", 1)).await.unwrap();
    group.heal();
    group.converge(&second).await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_takes_members_in_and_lets_them_go_while_it_runs() {
    let group = Group::of(1).await;
    let first = group.leader().await;
    first.write(put("alone", 1)).await.unwrap();
    let elsewhere = Peer {
        id: 2,
        address: "nowhere".into(),
    };
    // It need not be there yet, and may turn up elsewhere.
    first.put_follower(elsewhere).await.unwrap();
    first.put_follower(peer(2)).await.unwrap();
    first.put_follower(peer(2)).await.unwrap();
    assert_eq!(first.status().learners, [peer(2)]);
    let second = group.start(2).await;
    group.converge(&first).await;
    group.start(3).await;
    first.put_follower(peer(3)).await.unwrap();
    first.add_learner(peer(3)).await.unwrap();
    first.set_voters([1, 2, 3].into()).await.unwrap();
    group.kill(1).await;
    let next = group.leader().await;
    next.write(put("without the first", 2)).await.unwrap();
    next.set_voters([id(&next)].into()).await.unwrap();
    next.remove_followers([1, 2, 3].into_iter().filter(|node| *node != id(&next)).collect())
        .await
        .unwrap();
    assert_eq!(next.status().learners, []);
    next.write(put("alone again", 3)).await.unwrap();
    assert!(second.read().notes.contains_key("without the first"));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_voter_of_a_lost_majority_goes_on_alone_when_told_to() {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    for number in 0..10 {
        leader.write(put(number, "kept")).await.unwrap();
    }
    group.converge(&leader).await;
    let state = leader.read().state;
    for node in 1..=3 {
        group.kill(node).await;
    }
    let recovered = recover::<Notes>(group.directory_of(2), peer(2)).await.unwrap();
    assert_eq!(recovered.members_before, [peer(1), peer(2), peer(3)]);
    let alone = group.start(2).await;
    assert_eq!(alone.read().state, state);
    assert_eq!(alone.status().voters, [peer(2)]);
    alone.write(put("more", 1)).await.unwrap();
    group.kill(2).await;
    let again = group.start(2).await;
    assert!(again.read().notes.contains_key("more"));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_leaders_changed_starts_again_after_a_power_cut_of_all() {
    let group = Group::of(3).await;
    for round in 0..3 {
        let leader = group.leader().await;
        for number in 0..10 {
            leader.write(put(number, round)).await.unwrap();
        }
        group.kill(id(&leader)).await;
        let next = group.leader().await;
        next.write(put("between", round)).await.unwrap();
        group.start(id(&leader)).await;
        next.write(put("together", round)).await.unwrap();
        group.converge(&next).await;
    }
    let before = group.leader().await.read().state;
    for node in 1..=3 {
        group.kill(node).await;
    }
    for node in [2, 3, 1] {
        group.start(node).await;
    }
    let leader = group.leader().await;
    assert_eq!(leader.read().state, before);
    leader.write(put("after", 1)).await.unwrap();
    group.converge(&leader).await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_missed_a_change_of_leaders_catches_up_with_one_that_was_restarted() {
    let group = Group::of(3).await;
    let first = group.leader().await;
    for number in 0..10 {
        first.write(put(number, 1)).await.unwrap();
    }
    group.converge(&first).await;
    group.kill(id(&first)).await;
    let second = group.leader().await;
    for number in 0..10 {
        second.write(put(number, 2)).await.unwrap();
    }
    group.converge(&second).await;
    let others: Vec<u64> = group.nodes().iter().map(id).collect();
    for node in &others {
        group.kill(*node).await;
    }
    for node in &others {
        group.start(*node).await;
    }
    let third = group.leader().await;
    third.write(put("third", 3)).await.unwrap();
    group.start(id(&first)).await;
    third.write(put("fourth", 4)).await.unwrap();
    group.converge(&third).await;
    assert_eq!(*group.node(id(&first)).read(), *third.read());
    group.stop().await;
}
