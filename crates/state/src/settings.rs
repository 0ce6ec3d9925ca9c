//! What operators have chosen for the whole cluster, so that all hosts go by the same.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use types::{Bucket, Settings};

use crate::{State, command::Rejection};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "snake_case")]
pub enum SettingsChange {
    SetCopies { copies: u32 },
    SetBucket { bucket: Option<Bucket> },
}

impl State {
    pub(crate) fn change_settings(&mut self, change: SettingsChange) -> Result<(), Rejection> {
        let mut settings = Settings::clone(&self.settings);
        match change {
            SettingsChange::SetCopies { copies } => {
                if !(1..=Settings::COPIES_MAX).contains(&copies) {
                    let message = format!("must be from 1 to {}", Settings::COPIES_MAX);
                    return Err(Rejection::invalid("copies", message));
                }
                settings.copies = copies;
            }
            SettingsChange::SetBucket { bucket } => settings.bucket = bucket,
        }
        self.settings = Arc::new(settings);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use types::Timestamp;

    use super::*;
    use crate::{Change, Command};

    fn set(state: &mut State, change: SettingsChange) -> Result<(), String> {
        let at = Timestamp::from_micros(1);
        let change = Change::Settings { change };
        let outcome = state.apply(state.revision + 1, Command { at, change });
        outcome.map(drop).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn settings_have_a_default_and_outlive_a_snapshot() {
        let mut state = State::default();
        assert_eq!(state.settings.copies, 2);
        set(&mut state, SettingsChange::SetCopies { copies: 3 }).unwrap();
        let refused = set(&mut state, SettingsChange::SetCopies { copies: 0 });
        assert_eq!(refused, Err("must be from 1 to 100".into()));
        let mut image = vec![];
        state.write_image(&mut image).unwrap();
        let again = State::read_image(&mut &*image).unwrap();
        assert_eq!(again.settings.copies, 3);
    }

    #[test]
    fn a_snapshot_of_before_there_were_settings_has_the_default() {
        let state = State::read_image(&mut &b"{}"[..]).unwrap();
        assert_eq!(*state.settings, Settings::default());
    }
}
