//! `docs/api/differences.md`: what may differ from the recordings, and why.

use std::cell::RefCell;

use crate::compare::Difference;

/// One row: `` | `METHOD /path` | `KIND PLACE` | reason | ``. `*` stands for every operation; a place
/// that begins with `…` for every place that ends like it.
#[derive(Debug)]
struct Row {
    operation: String,
    kind: String,
    place: String,
    line: String,
}

pub struct Tolerated {
    rows: Vec<Row>,
    used: RefCell<Vec<bool>>,
}

impl Tolerated {
    pub fn read() -> Tolerated {
        let text = std::fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/api/differences.md"
        ))
        .expect("it is committed");
        let rows: Vec<_> = text.lines().filter_map(row).collect();
        let used = RefCell::new(vec![false; rows.len()]);
        Tolerated { rows, used }
    }

    /// Whether a row allows it.
    pub fn allows(&self, difference: &Difference) -> bool {
        let mut is_allowed = false;
        for (index, row) in self.rows.iter().enumerate() {
            if row.allows(difference) {
                self.used.borrow_mut()[index] = true;
                is_allowed = true;
            }
        }
        is_allowed
    }

    /// Rows that have allowed nothing.
    pub fn unused(&self) -> Vec<&str> {
        let used = self.used.borrow();
        let rows = self.rows.iter().zip(&*used);
        rows.filter(|(_, used)| !**used)
            .map(|(row, _)| row.line.as_str())
            .collect()
    }
}

impl Row {
    fn allows(&self, difference: &Difference) -> bool {
        let place = match self.place.strip_prefix('…') {
            Some(end) => difference.place.ends_with(end),
            None => difference.place == self.place,
        };
        place
            && self.kind == difference.kind
            && (self.operation == "*" || self.operation == difference.operation)
    }
}

fn row(line: &str) -> Option<Row> {
    let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
    let operation = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
    let difference = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
    let reason = cells.next()?;
    assert!(!reason.is_empty(), "a difference without a reason: {line}");
    let (kind, place) = difference.split_once(' ').unwrap_or((difference, ""));
    Some(Row {
        operation: operation.to_owned(),
        kind: kind.to_owned(),
        place: place.to_owned(),
        line: line.to_owned(),
    })
}
