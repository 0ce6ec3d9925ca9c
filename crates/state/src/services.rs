//! What is known of services beside their instances: kinds of leaders, leaders that were named, and
//! what services keep about themselves.

use std::sync::Arc;

use types::{AppId, LeaderType, ServiceChange, ServiceMeta, ServiceRow};

use crate::{State, command::Rejection};

/// Longest data that a service may keep: it is sent to every host with every change.
const DATA_BYTES_MAX: usize = 64 << 10;
/// Services that the jobs of one app may make known.
const OF_APP_MAX: usize = 100;

impl State {
    pub(crate) fn change_service(
        &mut self,
        name: String,
        app: Option<AppId>,
        change: ServiceChange,
    ) -> Result<(), Rejection> {
        let known = self.services.get(&name);
        if let (Some(known), Some(_)) = (known, app)
            && known.app != app
        {
            let message = format!("service {name:?} belongs to another app");
            return Err(Rejection::conflict(message));
        }
        if change == ServiceChange::Remove {
            return match self.services.remove(&name) {
                Some(_) => Ok(()),
                None => Err(Rejection::not_found(format!("service {name}"))),
            };
        }
        if let Some(app) = app {
            // A job may outlive its app by moments; what it leaves behind then nobody would remove.
            self.require_app(app)?;
            let of_app = self.services.values().filter(|row| row.app == Some(app)).count();
            if known.is_none() && of_app >= OF_APP_MAX {
                let message = format!("the app has {OF_APP_MAX} services already");
                return Err(Rejection::conflict(message));
            }
        }
        let mut row = match known {
            Some(known) => ServiceRow::clone(known),
            None => ServiceRow {
                name: name.clone(),
                app,
                ..ServiceRow::default()
            },
        };
        match change {
            ServiceChange::Create { leader_type } => row.leader_type = leader_type,
            ServiceChange::SetLeader { instance } => {
                row.leader_type = LeaderType::Manual;
                row.leader = Some(instance);
            }
            ServiceChange::SetMeta { meta } => {
                let meta = replaced(&name, row.meta.as_ref(), meta, self.revision)?;
                if !meta.leader_id.is_empty() {
                    row.leader = Some(meta.leader_id.clone());
                }
                row.meta = Some(meta);
            }
            ServiceChange::Remove => {}
        }
        self.services.insert(name, Arc::new(row));
        Ok(())
    }

    pub(crate) fn remove_services_of(&mut self, app: AppId) {
        let names: Vec<_> = self
            .services
            .values()
            .filter(|row| row.app == Some(app))
            .map(|row| row.name.clone())
            .collect();
        for name in names {
            self.services.remove(&name);
        }
    }
}

/// The new value with its index, if `new` was made from the current one.
fn replaced(
    name: &str,
    current: Option<&ServiceMeta>,
    new: ServiceMeta,
    index: u64,
) -> Result<ServiceMeta, Rejection> {
    if new.data.to_string().len() > DATA_BYTES_MAX {
        return Err(Rejection::invalid(
            "data",
            format!("is longer than {DATA_BYTES_MAX} bytes"),
        ));
    }
    match current {
        None if new.index != 0 => Err(Rejection::Stale {
            message: format!("service metadata for {name:?} does not exist, use index=0 to set"),
        }),
        Some(_) if new.index == 0 => Err(Rejection::Exists {
            message: format!("service metadata for {name:?} already exists, use index=n to set"),
        }),
        Some(current) if current.index != new.index => Err(Rejection::Stale {
            message: format!("service metadata for {name:?} exists, but wrong index provided"),
        }),
        _ => Ok(ServiceMeta { index, ..new }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use types::{Timestamp, Uuid};

    use super::*;
    use crate::{Change, Command};

    fn set(state: &mut State, at_index: u64, index: u64, data: u64) -> String {
        let change = Change::Service {
            service: "db".into(),
            app: None,
            change: ServiceChange::SetMeta {
                meta: ServiceMeta {
                    data: json!(data),
                    leader_id: String::new(),
                    index,
                },
            },
        };
        let at = Timestamp::from_micros(1);
        match state.apply(at_index, Command { at, change }) {
            Ok(_) => {
                let meta = state.services["db"].meta.clone().expect("it was just set");
                format!("{} at {}", meta.data, meta.index)
            }
            Err(rejection) => rejection.to_string(),
        }
    }

    #[test]
    fn data_is_replaced_only_by_who_knows_the_current_one() {
        let mut state = State::default();
        let told = [
            set(&mut state, 5, 3, 1),
            set(&mut state, 6, 0, 1),
            set(&mut state, 7, 0, 2),
            set(&mut state, 8, 5, 2),
            set(&mut state, 9, 6, 2),
        ];
        let expected = [
            "service metadata for \"db\" does not exist, use index=0 to set",
            "1 at 6",
            "service metadata for \"db\" already exists, use index=n to set",
            "service metadata for \"db\" exists, but wrong index provided",
            "2 at 9",
        ];
        assert_eq!(told, expected);
        let mut image = vec![];
        state.write_image(&mut image).unwrap();
        let again = State::read_image(&mut &*image).unwrap();
        assert_eq!(again.services, state.services, "a snapshot keeps them");
    }

    #[test]
    fn a_service_of_one_app_is_not_anothers() {
        let mut state = State::default();
        let change = |app| Change::Service {
            service: "db".into(),
            app,
            change: ServiceChange::Create {
                leader_type: LeaderType::Manual,
            },
        };
        let at = Timestamp::from_micros(1);
        let app = Some(AppId(Uuid::from_u128(7)));
        assert!(
            state
                .apply(
                    1,
                    Command {
                        at,
                        change: change(None)
                    }
                )
                .is_ok()
        );
        assert!(
            state
                .apply(
                    2,
                    Command {
                        at,
                        change: change(app)
                    }
                )
                .is_err()
        );
    }
}
