//! `flynn why`: what it asks for, and finding what is meant.

use serde_json::json;

use crate::{bench::Bench, fake::Fake};

#[test]
fn the_chain_of_causes_is_told_in_one_answer() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    let mut text = bench.transcript(&["create -r '' new", "why new"]);
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let ports = json!([{ "port": 8080, "proto": "tcp" }]);
    fake.state().releases[0].processes.get_mut("web").unwrap().ports = serde_json::from_value(ports).unwrap();
    text.push_str(&bench.transcript(&["why shop", "-a shop scale -n web=2", "why shop"]));
    let (crashed, up) = {
        let mut state = fake.state();
        let message = json!({ "host_id": "host0", "msg": "Error: Cannot find module 'express'", "stream": "stderr",
            "timestamp": state.now() });
        state.logs = vec![vec![serde_json::from_value(message).unwrap()]];
        let job = &mut state.jobs[0];
        job.state = types::JobState::Down;
        job.exit = Some(types::Exit::Code(1));
        (job.id.clone(), state.jobs[1].uuid.to_string())
    };
    text.push_str(&bench.transcript(&[
        "why shop",
        "-a shop why --json",
        &format!("-a shop why {crashed}"),
        &format!("why {up}"),
        &format!("why {crashed}"),
        "why shpo",
    ]));
    insta::assert_snapshot!(text);
}
