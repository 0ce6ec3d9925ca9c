//! Commands to the cluster's state, and the plans that come of it.

use scheduler::{Cluster, plan};
use state::{Command, State};
use types::{DeploymentStatus, ScaleRequestState, Timestamp};

/// The controller refuses to be asked for more than this; a plan names every job it starts.
const JOBS_PLANNED_MAX: u64 = 1000;

/// Lines of commands. Each is done or changes nothing, can be written to the log and read again, and
/// what comes of them can be written to a snapshot and read again.
pub fn commands(bytes: &[u8]) {
    let mut state = State::default();
    let mut now = Timestamp::EPOCH;
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let Ok(command) = serde_json::from_slice::<Command>(line) else {
            continue;
        };
        let written = serde_json::to_vec(&command).expect("what was read can be written");
        assert_eq!(
            serde_json::from_slice::<Command>(&written).expect("the log can be read"),
            command,
            "the log says something else"
        );
        now = command.at;
        let before = state.clone();
        let index = index as u64 + 1;
        if state.apply(index, command).is_err() {
            let mut expected = before;
            expected.revision = index;
            let line = String::from_utf8_lossy(line);
            assert!(
                image(&state) == image(&expected),
                "refused, and changed something: {line}"
            );
        }
    }
    let written = image(&state);
    let again = State::read_image(&mut written.as_bytes()).expect("the snapshot can be read");
    assert_eq!(image(&again), written);

    let counts = state
        .formations
        .values()
        .flat_map(|formation| formation.processes.values());
    let deploying = state
        .deployments
        .values()
        .flat_map(|deployment| deployment.processes.values());
    let scaled = state
        .scale_requests
        .values()
        .filter_map(|request| request.new_processes.as_ref());
    let wanted: u64 = counts
        .chain(deploying)
        .chain(scaled.flat_map(|counts| counts.values()))
        .map(|n| u64::from(*n))
        .sum();
    if wanted <= JOBS_PLANNED_MAX {
        let cluster = cluster(&state);
        let made = plan(&cluster, now);
        assert_eq!(made, plan(&cluster, now), "the same state gives another plan");
        assert!(
            made.wake_at.is_none_or(|at| at > now),
            "a plan would be made again and again"
        );
        let _ = made.to_string();
    }
}

fn image(state: &State) -> String {
    let mut bytes = vec![];
    state.write_image(&mut bytes).expect("a Vec takes everything");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

fn cluster(state: &State) -> Cluster {
    Cluster {
        apps: state.apps.clone(),
        releases: state.releases.clone(),
        formations: state.formations.clone(),
        scale_requests: state
            .scale_requests
            .iter()
            .filter(|(_, request)| request.state == ScaleRequestState::Pending)
            .map(|(id, request)| (*id, request.clone()))
            .collect(),
        deployments: state
            .deployments
            .iter()
            .filter(|(_, deployment)| {
                matches!(
                    deployment.status,
                    DeploymentStatus::Pending | DeploymentStatus::Running
                )
            })
            .map(|(id, deployment)| (*id, deployment.clone()))
            .collect(),
        jobs: state.jobs.clone(),
        hosts: state.hosts.clone(),
        volumes: state.volumes.clone(),
        revision: state.revision,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_seeds_is_carried_out() {
        for seed in [
            include_str!("../seeds/commands/deploying"),
            include_str!("../seeds/commands/running"),
            include_str!("../seeds/commands/to_the_end"),
        ] {
            let mut state = State::default();
            for (index, line) in seed.lines().enumerate() {
                let command = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                let outcome = state.apply(index as u64 + 1, command);
                assert!(outcome.is_ok(), "{outcome:?}: {line}");
            }
        }
    }
}
