//! A state taken out of one cluster and put into another, which is empty.
//!
//! What belonged to the old machines is left out: hosts and jobs. Volumes are all on the new host,
//! where their files were put. A state may be larger than a command may be, so it comes in pieces.

use std::sync::Arc;

use serde_json::{Map, Value};
use types::HostId;

use crate::{State, command::Rejection, image::ImageError};

/// Of one piece, about: several rows, each far below what a command may hold.
const PIECE_BYTES: usize = 4 << 20;

/// Takes an image ([`State::write_image`]) apart into images of fewer rows.
pub fn pieces(image: &[u8]) -> Result<Vec<Value>, ImageError> {
    let tables: Map<String, Value> = serde_json::from_slice(image)?;
    let mut pieces = vec![];
    let (mut piece, mut bytes) = (Map::new(), 0);
    for (table, rows) in tables {
        // What belonged to the old machines, and the position in their log.
        if ["hosts", "jobs", "revision"].contains(&table.as_str()) {
            continue;
        }
        let Value::Array(rows) = rows else {
            piece.insert(table, rows);
            continue;
        };
        for row in rows {
            bytes += row.to_string().len();
            let Value::Array(taken) = piece.entry(table.clone()).or_insert_with(|| Value::Array(vec![]))
            else {
                unreachable!("a table is an array in every piece");
            };
            taken.push(row);
            if bytes >= PIECE_BYTES {
                pieces.push(Value::Object(std::mem::take(&mut piece)));
                bytes = 0;
            }
        }
    }
    pieces.push(Value::Object(piece));
    Ok(pieces)
}

impl State {
    /// Adds the rows of a piece. Only into a cluster that has never had a host.
    pub(crate) fn restore(&mut self, piece: Value, host: &HostId) -> Result<(), Rejection> {
        if !self.hosts.is_empty() {
            return Err(Rejection::conflict(
                "a cluster that is in use cannot be restored over",
            ));
        }
        let image = serde_json::to_vec(&piece).map_err(|error| Rejection::conflict(error.to_string()))?;
        let rows = State::read_image(&mut image.as_slice())
            .map_err(|error| Rejection::conflict(error.to_string()))?;
        macro_rules! add {
            ($($table:ident),*) => {
                $(for (id, row) in rows.$table.iter() {
                    self.$table.insert(id.clone(), row.clone());
                })*
            };
        }
        add!(
            apps,
            artifacts,
            releases,
            formations,
            scale_requests,
            deployments,
            routes,
            certificates,
            sinks,
            services,
            contents,
            deleted_apps,
            deleted_releases,
            providers,
            resources,
            domain_migrations,
            named_artifacts,
            app_names,
            artifact_uris
        );
        for volume in rows.volumes.values() {
            let mut volume = types::Volume::clone(volume);
            volume.host_id = host.clone();
            volume.job = None;
            self.volumes.insert(volume.id, Arc::new(volume));
        }
        self.events.extend(rows.events.iter().cloned());
        self.last_event = self.last_event.max(rows.last_event);
        if *rows.settings != types::Settings::default() {
            self.settings = rows.settings.clone();
        }
        // Of the same key: secrets were restored with it.
        if *rows.authority != types::Authority::default() {
            self.authority = rows.authority.clone();
        }
        if rows.last_backup.is_some() {
            self.last_backup = rows.last_backup.clone();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use types::{App, AppId, Strategy, Timestamp, Uuid};

    use super::*;
    use crate::{Change, Command};

    fn app(n: u128, text: &str) -> App {
        App {
            id: AppId(Uuid::from_u128(n)),
            name: format!("app{n}"),
            meta: BTreeMap::from([("text".to_owned(), text.to_owned())]),
            strategy: Strategy::AllAtOnce,
            release: None,
            deploy_timeout: 120,
            created_at: Timestamp::from_micros(0),
            updated_at: Timestamp::from_micros(0),
        }
    }

    fn apply(state: &mut State, change: Change) -> crate::Outcome {
        let at = Timestamp::from_micros(0);
        state.apply(state.revision + 1, Command { at, change })
    }

    #[test]
    fn a_state_comes_back_from_pieces_of_bounded_size() {
        let mut old = State::default();
        // Longer than two pieces.
        let text = "x".repeat(PIECE_BYTES / 3);
        for n in 1..=8 {
            let app = app(n, &text);
            apply(&mut old, Change::CreateApp { app, route: None }).unwrap();
        }
        let mut image = vec![];
        old.write_image(&mut image).unwrap();
        let pieces = pieces(&image).unwrap();
        assert!(pieces.len() >= 3);
        assert!(
            pieces
                .iter()
                .all(|piece| piece.to_string().len() < 2 * PIECE_BYTES)
        );

        let mut new = State::default();
        let host: HostId = "host0".parse().unwrap();
        for rows in pieces {
            let host = host.clone();
            apply(&mut new, Change::Restore { rows, host }).unwrap();
        }
        assert_eq!(
            new.apps.values().collect::<Vec<_>>(),
            old.apps.values().collect::<Vec<_>>()
        );
        assert_eq!(new.app_by_name("app3"), old.app_by_name("app3"));
        assert_eq!(new.last_event, old.last_event);
        assert_eq!(new.events.len(), old.events.len());
    }
}
