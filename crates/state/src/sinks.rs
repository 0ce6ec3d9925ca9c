//! Log sinks: made and removed; they never change.

use std::sync::Arc;

use types::{Sink, SinkId, Timestamp};

use crate::{State, command::Rejection, event::Subject};

impl State {
    pub(crate) fn create_sink(&mut self, at: Timestamp, sink: Sink) -> Result<(), Rejection> {
        if self.sinks.contains_key(&sink.id) {
            let message = format!("sink {} already exists", sink.id);
            return Err(Rejection::Exists { message });
        }
        let sink = Arc::new(sink);
        self.sinks.insert(sink.id, sink.clone());
        self.emit(at, None, Subject::Sink { sink });
        Ok(())
    }

    pub(crate) fn delete_sink(&mut self, at: Timestamp, id: SinkId) -> Result<(), Rejection> {
        let sink = self
            .sinks
            .remove(&id)
            .ok_or_else(|| Rejection::not_found(format!("sink {id}")))?;
        self.emit(at, None, Subject::SinkDeletion { sink });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use types::{ObjectType, SyslogSinkConfig, Uuid};

    use super::*;
    use crate::{Change, Command};

    #[test]
    fn a_sink_comes_and_goes_with_its_events_and_through_a_snapshot() {
        let mut state = State::default();
        let at = Timestamp::from_micros(5);
        let sink = Sink {
            id: SinkId(Uuid::from_u128(1)),
            config: SyslogSinkConfig {
                url: "syslog://x".into(),
                ..SyslogSinkConfig::default()
            },
            created_at: at,
            updated_at: at,
        };
        let apply = |state: &mut State, change| state.apply(1, Command { at, change });
        let create = Change::CreateSink { sink: sink.clone() };
        apply(&mut state, create.clone()).unwrap();
        assert!(matches!(apply(&mut state, create), Err(Rejection::Exists { .. })));

        let mut image = vec![];
        state.write_image(&mut image).unwrap();
        let mut state = State::read_image(&mut image.as_slice()).unwrap();
        assert_eq!(*state.sinks[&sink.id], sink);

        let delete = Change::DeleteSink { sink: sink.id };
        apply(&mut state, delete.clone()).unwrap();
        assert!(matches!(
            apply(&mut state, delete),
            Err(Rejection::NotFound { .. })
        ));
        let told: Vec<_> = state
            .events
            .iter()
            .map(|event| (event.subject.object_type(), event.subject.object_id()))
            .collect();
        let id = sink.id.to_string();
        assert_eq!(
            told,
            [(ObjectType::Sink, id.clone()), (ObjectType::SinkDeletion, id)]
        );
    }
}
