//! Which version is valid of what hosts keep beside the state: repositories of git and of the registry.
//!
//! A version is replaced by compare-and-set, so that of two hosts that each take themselves for the
//! one to write, one is told that it is not.

use std::sync::Arc;

use types::{AppId, Content, Digest, Timestamp};

use crate::{State, command::Rejection};

impl State {
    pub(crate) fn put_content(
        &mut self,
        at: Timestamp,
        name: String,
        app: AppId,
        after: u64,
        digest: Digest,
    ) -> Result<(), Rejection> {
        self.require_app(app)?;
        let known = self.contents.get(&name);
        let serial = known.map_or(0, |known| known.serial);
        // Said twice, as by a host that did not hear the answer.
        if serial == after + 1 && known.is_some_and(|known| known.digest == digest) {
            return Ok(());
        }
        if serial != after {
            let message = format!("{name} is at version {serial}, not {after}");
            return Err(Rejection::Stale { message });
        }
        let content = Content {
            name: name.clone(),
            app,
            serial: after + 1,
            digest,
            updated_at: at,
        };
        self.contents.insert(name, Arc::new(content));
        Ok(())
    }

    pub(crate) fn remove_contents_of(&mut self, app: AppId) {
        let of_app = self.contents.values().filter(|row| row.app == app);
        let names: Vec<_> = of_app.map(|row| row.name.clone()).collect();
        for name in names {
            self.contents.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use types::{App, Strategy, Uuid};

    use super::*;
    use crate::{Change, Command};

    fn put(state: &mut State, after: u64, digit: &str) -> String {
        let change = Change::PutContent {
            name: "git/x".into(),
            app: AppId(Uuid::from_u128(1)),
            after,
            digest: digit.repeat(64).parse().unwrap(),
        };
        let at = Timestamp::from_micros(1);
        match state.apply(1, Command { at, change }) {
            Ok(_) => format!("{}", state.contents["git/x"].serial),
            Err(rejection) => rejection.to_string(),
        }
    }

    #[test]
    fn a_version_is_replaced_only_by_who_knows_the_current_one() {
        let mut state = State::default();
        let at = Timestamp::from_micros(1);
        assert!(put(&mut state, 0, "a").contains("not found"));
        let app = App {
            id: AppId(Uuid::from_u128(1)),
            name: "x".into(),
            meta: Default::default(),
            strategy: Strategy::AllAtOnce,
            release: None,
            deploy_timeout: 120,
            created_at: at,
            updated_at: at,
        };
        let change = Change::CreateApp { app, route: None };
        state.apply(1, Command { at, change }).unwrap();
        let told = [
            put(&mut state, 0, "a"),
            put(&mut state, 0, "a"),
            put(&mut state, 0, "b"),
            put(&mut state, 1, "b"),
            put(&mut state, 1, "c"),
        ];
        let expected = [
            "1",
            "1",
            "git/x is at version 1, not 0",
            "2",
            "git/x is at version 2, not 1",
        ];
        assert_eq!(told, expected);
        let mut image = vec![];
        state.write_image(&mut image).unwrap();
        let again = State::read_image(&mut &*image).unwrap();
        assert_eq!(again.contents, state.contents, "a snapshot keeps them");
        for change in [
            Change::DeleteApp {
                app: AppId(Uuid::from_u128(1)),
            },
            Change::FinishAppDeletion {
                app: AppId(Uuid::from_u128(1)),
            },
        ] {
            state.apply(1, Command { at, change }).unwrap();
        }
        assert!(state.contents.is_empty(), "they go with the app");
    }
}
