//! `GET /formations` as a stream: what changed since a time, a mark, then every change.
//!
//! The mark is a formation without anything in it, by which the original's clients know that they
//! have heard everything up to now.

use std::{collections::VecDeque, sync::Arc};

use api::{sse, wire::ExpandedFormation};
use bytes::Bytes;
use state::State;
use types::{Formation, Timestamp};

use super::formations::expanded;
use crate::Controller;

pub fn follow(controller: Controller, since: Timestamp) -> impl futures::Stream<Item = Bytes> + Send {
    let changes = controller.changes();
    let state = (controller, changes, None::<Arc<State>>, VecDeque::<Bytes>::new());
    futures::stream::unfold(
        state,
        move |(controller, mut changes, mut told, mut ready)| async move {
            loop {
                if let Some(message) = ready.pop_front() {
                    return Some((message, (controller, changes, told, ready)));
                }
                changes.borrow_and_update();
                let now = controller.state();
                match &told {
                    None => ready.extend(current(&now, since)),
                    Some(before) => ready.extend(changed(before, &now)),
                }
                told = Some(now);
                if ready.is_empty() && changes.changed().await.is_err() {
                    return None;
                }
            }
        },
    )
}

fn current(state: &State, since: Timestamp) -> Vec<Bytes> {
    let formations = state.formations.values();
    let mut messages: Vec<_> = formations
        .filter(|formation| formation.updated_at >= since)
        .filter_map(|formation| expanded(state, formation))
        .map(|formation| sse::message(&formation))
        .collect();
    // As Go writes the zero of its time.
    messages.push(sse::message(
        &serde_json::json!({ "updated_at": "0001-01-01T00:00:00Z" }),
    ));
    messages
}

fn changed(before: &State, now: &State) -> Vec<Bytes> {
    if before.formations.ptr_eq(&now.formations) {
        return vec![];
    }
    let mut messages = vec![];
    for (key, formation) in &now.formations {
        let is_same = before
            .formations
            .get(key)
            .is_some_and(|old| Arc::ptr_eq(old, formation));
        if !is_same && let Some(formation) = expanded(now, formation) {
            messages.push(sse::message(&formation));
        }
    }
    for (key, formation) in &before.formations {
        if !now.formations.contains_key(key)
            && let Some(deleted) = deleted(before, now, formation)
        {
            messages.push(sse::message(&deleted));
        }
    }
    messages
}

/// With what it referred to while it was there, and no processes.
fn deleted(before: &State, now: &State, formation: &Formation) -> Option<ExpandedFormation> {
    let formation = Formation {
        processes: Default::default(),
        ..formation.clone()
    };
    let expanded = expanded(now, &formation).or_else(|| expanded(before, &formation))?;
    Some(ExpandedFormation {
        deleted: true,
        ..expanded
    })
}
