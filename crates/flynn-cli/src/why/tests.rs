//! Worlds as JSON, answers as a person reads them. It is 12:00:00; shop has web and worker.

use serde_json::{Value, json};

use super::{jobs::how_it_ended, *};

const RELEASE: &str = "00000000-0000-4000-8000-0000000000aa";
const NOON: &str = "2026-11-23T12:00:00Z";

fn id(number: u8) -> String {
    format!("00000000-0000-4000-8000-0000000000{number:02}")
}

/// A job of the current release, with what else is said of it.
fn a_job(number: u8, process_type: &str, state: &str, more: Value) -> Job {
    let mut job = json!({
        "id": format!("host0-{}", id(number)), "uuid": id(number), "release": RELEASE, "type": process_type,
        "state": state, "created_at": "2026-11-23T11:59:00Z", "updated_at": "2026-11-23T11:59:48Z",
    });
    if state == "pending" {
        job["id"] = json!("");
    }
    for (key, value) in more.as_object().unwrap() {
        job[key] = value.clone();
    }
    serde_json::from_value(job).unwrap()
}

fn world(counts: Value, jobs: Vec<Job>) -> Facts {
    let memory = json!({ "memory": { "request": 512 << 20, "limit": 512 << 20 } });
    let app = json!({
        "id": id(1), "name": "shop", "strategy": "all-at-once", "release": RELEASE, "deploy_timeout": 120,
        "created_at": NOON, "updated_at": NOON, "meta": {},
    });
    let release = json!({
        "id": RELEASE, "app_id": id(1), "created_at": NOON, "artifacts": [id(2)], "processes": {
            "web": { "ports": [{ "port": 8080, "proto": "tcp" }], "service": "shop-web", "resources": memory },
            "worker": { "resources": memory },
        },
    });
    let formation = json!({
        "app": id(1), "release": RELEASE, "processes": counts, "created_at": NOON, "updated_at": NOON,
    });
    let mut facts = Facts {
        now: NOON.parse().unwrap(),
        app: serde_json::from_value(app).unwrap(),
        release: serde_json::from_value(release).unwrap(),
        formation: serde_json::from_value(formation).unwrap(),
        jobs,
        deployments: vec![],
        routes: vec![],
        hosts: vec![],
        logs: BTreeMap::new(),
        domain: "flynn.test".into(),
    };
    facts.routes.push(route(3, "shop.flynn.test", "shop-web"));
    facts.hosts.push(host("host0", json!("up")));
    facts
}

fn route(number: u8, domain: &str, service: &str) -> RouteView {
    let route = json!({
        "type": "http", "id": id(number), "parent_ref": "x", "service": service, "domain": domain, "path": "/",
        "created_at": NOON, "updated_at": NOON,
    });
    serde_json::from_value(route).unwrap()
}

fn host(name: &str, state: Value) -> Host {
    let host = json!({
        "id": name, "addr": "127.0.0.1:1", "state": state, "memory_bytes": 1, "cpu_milli": 1, "version": "v0",
        "created_at": NOON, "started_at": NOON,
    });
    serde_json::from_value(host).unwrap()
}

fn deployment(status: &str, error: &str) -> Deployment {
    let deployment = json!({
        "id": id(50), "app": id(1), "new_release": id(51), "strategy": "all-at-once", "status": status,
        "deploy_timeout": 120, "error": error, "created_at": "2026-11-23T11:57:00Z",
    });
    serde_json::from_value(deployment).unwrap()
}

#[test]
fn an_app_that_is_well_is_said_to_be() {
    let jobs = vec![
        a_job(10, "web", "up", json!({})),
        a_job(11, "worker", "up", json!({})),
    ];
    let facts = world(json!({ "web": 1, "worker": 1 }), jobs);
    insta::assert_snapshot!(app(&facts).render(), @"shop is up: web=1 worker=1");
}

#[test]
fn an_app_that_was_never_deployed_or_scaled_is_told_how() {
    let mut facts = world(json!({}), vec![]);
    insta::assert_snapshot!(app(&facts).render(), @r"
    shop is down: it is scaled to nothing
      shop.flynn.test answers 503: no web job is up to lead to
    hint: start it: `flynn -a shop scale web=1`
    ");
    facts.release = None;
    insta::assert_snapshot!(app(&facts).render(), @r"
    shop runs nothing: it was never deployed
    hint: deploy it: `git push flynn main`
    ");
}

#[test]
fn a_crash_is_quoted_and_its_back_off_counted() {
    let pending = json!({
        "run_at": "2026-11-23T12:00:08Z", "restarts": 7, "waiting": "restarts 16 s after crash 7",
        "created_at": "2026-11-23T11:59:50Z",
    });
    let jobs = vec![
        a_job(12, "web", "pending", pending),
        a_job(11, "web", "down", json!({ "exit": { "code": 1 } })),
        a_job(10, "web", "down", json!({ "exit": { "code": 1 } })),
        a_job(9, "web", "down", json!({ "exit": { "code": 1 } })),
    ];
    let mut facts = world(json!({ "web": 1 }), jobs);
    assert_eq!(worth_reading(&facts.jobs).len(), 2);
    let said = vec![
        "node:internal/modules".into(),
        "Error: Cannot find module 'express'".into(),
    ];
    facts.logs.insert(facts.jobs[1].uuid, said);
    insta::assert_snapshot!(app(&facts).render(), @r"
    shop is down: its job is not up
      0 of 1 web job is up
        00000000-0000-4000-8000-000000000012 starts in 8 s, after 7 crashes in a row
        host0-00000000-0000-4000-8000-000000000011 ended 12 seconds ago: exited with status 1
          | node:internal/modules
          | Error: Cannot find module 'express'
        host0-00000000-0000-4000-8000-000000000010 ended 12 seconds ago: exited with status 1
        1 more before that
      shop.flynn.test answers 503: no web job is up to lead to
    hint: all that it wrote: `flynn -a shop log -j 00000000-0000-4000-8000-000000000011`
    hint: all that it wrote: `flynn -a shop log -j 00000000-0000-4000-8000-000000000010`
    ");
    insta::assert_snapshot!(job(&facts, &facts.jobs[0]).render(), @r"
    00000000-0000-4000-8000-000000000012 starts in 8 s, after 7 crashes in a row
      host0-00000000-0000-4000-8000-000000000011 ended 12 seconds ago: exited with status 1
        | node:internal/modules
        | Error: Cannot find module 'express'
    hint: all that it wrote: `flynn -a shop log -j 00000000-0000-4000-8000-000000000011`
    ");
}

#[test]
fn too_little_memory_is_told_apart_and_twice_as_much_is_advised() {
    let jobs = vec![
        a_job(11, "web", "up", json!({})),
        a_job(10, "worker", "down", json!({ "exit": "out_of_memory" })),
    ];
    let facts = world(json!({ "web": 1, "worker": 1 }), jobs);
    insta::assert_snapshot!(app(&facts).render(), @r"
    shop is up in part: 1 of 2 jobs are up
      0 of 1 worker job is up
        host0-00000000-0000-4000-8000-000000000010 ended 12 seconds ago: it took more than its 512MB of memory
    hint: give it more: `flynn -a shop limit set worker memory=1GB`
    ");
}

#[test]
fn jobs_that_find_no_place_are_one_cause() {
    let waiting = json!({ "waiting": "no host has 512 MB of memory free: host0 has 12 MB" });
    let jobs = vec![
        a_job(12, "worker", "pending", waiting.clone()),
        a_job(11, "worker", "pending", waiting.clone()),
        a_job(10, "web", "up", json!({})),
    ];
    let mut facts = world(json!({ "web": 1, "worker": 2 }), jobs);
    facts.hosts.push(host(
        "host1",
        json!({ "silent": { "since": "2026-11-23T11:58:00Z" } }),
    ));
    insta::assert_snapshot!(app(&facts).render(), @r"
    shop is up in part: 1 of 3 jobs are up
      0 of 2 worker jobs are up
        00000000-0000-4000-8000-000000000012 waits: no host has 512 MB of memory free: host0 has 12 MB; so do 1 more
      host1 has not answered since 11:58:00.000: nothing is started there
    ");
    insta::assert_snapshot!(job(&facts, &facts.jobs[0]).render(), @r"
    00000000-0000-4000-8000-000000000012 waits: no host has 512 MB of memory free: host0 has 12 MB
      host1 has not answered since 11:58:00.000: nothing is started there
    ");
}

#[test]
fn a_deployment_that_failed_is_quoted_and_one_under_way_is_followed() {
    let jobs = vec![
        a_job(11, "web", "starting", json!({ "release": id(51) })),
        a_job(10, "web", "up", json!({})),
    ];
    let mut facts = world(json!({ "web": 1 }), jobs);
    facts.deployments = vec![deployment("running", "")];
    insta::assert_snapshot!(app(&facts).render(), @r"
    shop is up: web=1
      release 00000000-0000-4000-8000-000000000051 has been under deployment for 3 minutes: 0 of its jobs are up
        host0-00000000-0000-4000-8000-000000000011 has been starting for about a minute: its host has not started it yet
    ");
    let error = "web was not up on port 8080 within 120 s\nThe last lines of its log:\n  listening on 3000";
    facts.deployments = vec![deployment("failed", error)];
    facts.jobs.remove(0);
    insta::assert_snapshot!(app(&facts).render(), @r"
    shop is up: web=1
      the deployment of release 00000000-0000-4000-8000-000000000051 failed 3 minutes ago: web was not up on port 8080 within 120 s; release 00000000-0000-4000-8000-0000000000aa, which was there before it, is the current one
        | The last lines of its log:
        | listening on 3000
    hint: mend its cause, then push again, or make the change again
    ");
}

#[test]
fn a_job_that_does_not_open_its_port_is_said_to_start() {
    let facts = world(json!({ "web": 1 }), vec![a_job(10, "web", "starting", json!({}))]);
    insta::assert_snapshot!(job(&facts, &facts.jobs[0]).render(), @"host0-00000000-0000-4000-8000-000000000010 has been starting for about a minute: its port 8080 does not answer yet");
}

#[test]
fn routes_that_lead_nowhere_or_lack_a_certificate_are_named() {
    let mut facts = world(json!({ "web": 1 }), vec![a_job(10, "web", "up", json!({}))]);
    facts.routes.push(route(4, "www.example.com", "shop-web"));
    facts.routes.push(route(5, "api.flynn.test", "shop-api"));
    insta::assert_snapshot!(app(&facts).render(), @r"
    shop is up: web=1
      www.example.com has no certificate: browsers warn of https there, which is answered with the cluster's own
      api.flynn.test leads to the service shop-api, which no process type of shop provides
    hint: give it one: `flynn -a shop route update http/00000000-0000-4000-8000-000000000004 -c CERT.pem -k KEY.pem`
    hint: lead it elsewhere: `flynn -a shop route update http/00000000-0000-4000-8000-000000000005 -s SERVICE`
    ");
}

#[test]
fn every_end_of_a_job_has_its_words() {
    let facts = world(json!({ "web": 1 }), vec![]);
    let told = |kind: &str, exit: Value| {
        let job = a_job(10, kind, "down", json!({ "exit": exit }));
        how_it_ended(&facts, &job)
    };
    assert_eq!(
        told("web", json!({ "code": 0 })),
        "its process exited with status 0, though it is to go on"
    );
    assert_eq!(told("", json!({ "code": 0 })), "exited with status 0");
    assert_eq!(told("web", json!({ "signal": 15 })), "it was told to stop");
    assert_eq!(told("web", json!({ "signal": 11 })), "killed by signal 11");
    assert_eq!(
        told("web", json!({ "not_started": "no such file" })),
        "could not start: no such file"
    );
    assert_eq!(
        told("web", json!({ "lost": "host1 went away" })),
        "lost: host1 went away"
    );
}
