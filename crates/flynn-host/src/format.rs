//! Tables and times as the original printed them.

use types::Timestamp;

/// Columns two spaces apart.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `Less than a second ago`, `3 minutes ago`.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.since(then).as_secs();
    let text = match seconds {
        0 => "Less than a second".into(),
        1..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..3600 => format!("{} minutes", seconds / 60),
        3600..7200 => "About an hour".into(),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    };
    format!("{text} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let text = table(&[
            row(&["ID", "ADDR", "RAFT STATUS"]),
            row(&["host0", "10.0.0.1:1113", "peer (leader)"]),
        ]);
        assert_eq!(
            text,
            "ID     ADDR           RAFT STATUS\nhost0  10.0.0.1:1113  peer (leader)\n"
        );
    }

    #[test]
    fn times_are_told_as_docker_tells_them() {
        let ago_s = |seconds: i64| ago(Timestamp::EPOCH, Timestamp::from_micros(seconds * 1_000_000));
        assert_eq!(ago_s(0), "Less than a second ago");
        assert_eq!(ago_s(59), "59 seconds ago");
        assert_eq!(ago_s(61), "About a minute ago");
        assert_eq!(ago_s(7300), "2 hours ago");
        assert_eq!(ago_s(200_000), "2 days ago");
    }
}
