//! The newest events as bytes: written once, however many streams send them.

use std::{collections::BTreeMap, sync::Mutex};

use api::sse;
use bytes::Bytes;
use state::{State, StateEvent};

use crate::event_view;

/// Streams that keep up ask for the newest few; those that come back write older ones for themselves.
const EVENTS_MAX: usize = 256;
/// An event is as large as the release that it is about, whose environment may have 1 MiB.
const BYTES_MAX: usize = 8 << 20;

#[derive(Default)]
pub struct EventCache {
    written: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    messages: BTreeMap<u64, Bytes>,
    bytes: usize,
}

impl EventCache {
    /// The event as a message of a stream.
    pub fn message(&self, state: &State, event: &StateEvent) -> Bytes {
        let is_new = state.last_event - event.id < EVENTS_MAX as u64;
        if is_new && let Some(known) = self.get(event.id) {
            return known;
        }
        let message = sse::message(&event_view::event(state, event));
        if is_new {
            self.put(event.id, message.clone());
        }
        message
    }

    fn get(&self, id: u64) -> Option<Bytes> {
        let written = self.written.lock().expect("no panic while held");
        written.messages.get(&id).cloned()
    }

    fn put(&self, id: u64, message: Bytes) {
        let mut written = self.written.lock().expect("no panic while held");
        written.bytes += message.len();
        if let Some(before) = written.messages.insert(id, message) {
            written.bytes -= before.len();
        }
        while written.messages.len() > EVENTS_MAX || written.bytes > BYTES_MAX {
            let Some((_, oldest)) = written.messages.pop_first() else {
                return;
            };
            written.bytes -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_events_are_kept_and_few_where_they_are_large() {
        let cache = EventCache::default();
        for id in 1..=1000 {
            cache.put(id, Bytes::from_static(b"x"));
        }
        assert_eq!((cache.get(744), cache.get(745).is_some()), (None, true));
        for id in 1001..=1020 {
            cache.put(id, vec![0; 1 << 20].into());
        }
        assert_eq!((cache.get(1012), cache.get(1013).is_some()), (None, true));
    }
}
