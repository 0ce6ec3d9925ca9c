//! How values are printed: tables, times, durations, sizes.
//!
//! The forms are the original's, which scripts may read: Go's tabwriter for tables, Docker's words
//! for durations, Go's form for exact ones.

use std::{
    io::{ErrorKind, Write},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use types::Timestamp;

use crate::failure::{Failure, Result};

/// Prints to standard output. A reader that has gone away (`flynn log | head`) ends the command
/// without a word, as it ends other tools.
pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        let status = if error.kind() == ErrorKind::BrokenPipe {
            0
        } else {
            1
        };
        std::process::exit(status);
    }
}

pub fn print_line(text: &str) {
    print(&format!("{text}\n"));
}

pub fn print_json(value: &impl Serialize) {
    print_line(&serde_json::to_string_pretty(value).expect("what is listed has text keys"));
}

pub fn print_table(rows: &[Vec<String>]) {
    print(&table(rows));
}

/// A row from anything that is text.
pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Columns as wide as their widest cell and two spaces; a row's last cell is not padded.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let inner = rows.iter().filter(|row| row.len() > column + 1);
        inner.map(|row| row[column].chars().count()).max().unwrap_or(0) + 2
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < row.len() {
                let pad = widths[column] - cell.chars().count();
                text.extend(std::iter::repeat_n(' ', pad));
            }
        }
        text.push('\n');
    }
    text
}

pub fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

/// `3 minutes ago`.
pub fn ago(now: Timestamp, then: Timestamp) -> String {
    format!("{} ago", rough(now.since(then)))
}

/// `about a minute`, for the middle of a sentence.
pub fn lasting(now: Timestamp, since: Timestamp) -> String {
    rough(now.since(since)).to_lowercase()
}

fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if minutes < 1 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if hours < 1 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if days < 14 => format!("{days} days"),
        () if days < 60 => format!("{} weeks", days / 7),
        () if days < 730 => format!("{} months", days / 30),
        () => format!("{} years", days / 365),
    }
}

/// The time of day in UTC, to the millisecond.
pub fn clock(time: Timestamp) -> String {
    let millis = time.as_micros().div_euclid(1000).rem_euclid(86_400_000);
    let seconds = millis / 1000;
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        millis % 1000
    )
}

/// `2026-11-23 05:27:19.32457 +0000 UTC`.
pub fn date_and_time(time: Timestamp) -> String {
    time.to_string().replacen('T', " ", 1).replace('Z', " +0000 UTC")
}

/// `185.806ms`, `3.944629s`, `1m2.5s`.
pub fn exact(duration: Duration) -> String {
    let decimal = |value: f64, digits: usize, unit: &str| {
        let text = format!("{value:.digits$}");
        let text = if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.')
        } else {
            &text
        };
        format!("{text}{unit}")
    };
    let micros = duration.as_micros();
    if micros < 1000 {
        return format!("{micros}µs");
    }
    if micros < 1_000_000 {
        return decimal(micros as f64 / 1000.0, 3, "ms");
    }
    let minutes = micros / 60_000_000;
    let seconds = decimal((micros % 60_000_000) as f64 / 1e6, 6, "s");
    if minutes == 0 {
        seconds
    } else {
        format!("{minutes}m{seconds}")
    }
}

const UNITS: [&str; 6] = ["B", "KB", "MB", "GB", "TB", "PB"];

/// Bytes as Docker's tools and the original show them: `111.58 MB`.
pub fn size(bytes: u64) -> String {
    let (mut size, mut unit) = (bytes as f64, 0);
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{size:.2} {}", UNITS[unit]),
    }
}

/// A limit as it is shown: `512MB`, or the number for what is not counted in bytes.
pub fn limit(name: &str, value: i64) -> String {
    if !is_in_bytes(name) {
        return value.to_string();
    }
    let (mut size, mut unit) = (value as f64, 0);
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    let digits = if size >= 1000.0 {
        0
    } else {
        3 - (size.max(1.0).log10() as usize)
    };
    let text = format!("{size:.digits$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{}", UNITS[unit])
}

fn is_in_bytes(name: &str) -> bool {
    matches!(name, "memory" | "temp_disk")
}

/// A limit as users give it: a count, or bytes with a unit (`512MB`, `1.5g`, `64KiB`); units are
/// powers of 1024.
pub fn parse_limit(name: &str, text: &str) -> Result<i64> {
    let wrong = || {
        let hint = if is_in_bytes(name) {
            "give a size such as 512MB or 1.5GB"
        } else {
            "give a whole number"
        };
        Failure::new(format!("invalid value {text:?} for {name}")).with_hint(hint)
    };
    if !is_in_bytes(name) {
        return text.parse().ok().filter(|value| *value > 0).ok_or_else(wrong);
    }
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..split].parse().map_err(|_| wrong())?;
    let unit = text[split..].trim().to_ascii_lowercase();
    let power = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(wrong()),
    };
    let bytes = number * 1024f64.powi(power);
    if (1.0..i64::MAX as f64).contains(&bytes) {
        Ok(bytes as i64)
    } else {
        Err(wrong())
    }
}

/// The known name that a mistyped one is closest to, if it is close.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (name.chars().count() / 3).max(1);
    known
        .map(|other| (edits(name, other), other))
        .filter(|(edits, _)| *edits <= allowed)
        .min()
        .map(|(_, o)| o)
}

/// How many letters have to be added, removed, replaced or swapped with their neighbour.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut costs = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            costs[i][j] = match (i, j) {
                (0, _) | (_, 0) => i + j,
                _ => {
                    let replaced = costs[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let is_swap = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    let swapped = if is_swap {
                        costs[i - 2][j - 2] + 1
                    } else {
                        usize::MAX
                    };
                    replaced
                        .min(costs[i - 1][j] + 1)
                        .min(costs[i][j - 1] + 1)
                        .min(swapped)
                }
            };
        }
    }
    costs[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_pads_all_cells_but_the_last() {
        let rows = [
            row(["NAME", "URL"]),
            row(["default", "https://x", "(default)"])[..].to_vec(),
        ];
        assert_eq!(table(&rows), "NAME     URL\ndefault  https://x  (default)\n");
        assert_eq!(
            table(&[row(["ROUTE", "PATH"]), row(["tcp:3000", ""])]),
            "ROUTE     PATH\ntcp:3000  \n"
        );
    }

    #[test]
    fn durations_are_in_words() {
        for (seconds, text) in [
            (0, "Less than a second ago"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (60, "About a minute ago"),
            (200, "3 minutes ago"),
            (3600, "About an hour ago"),
            (86_400, "24 hours ago"),
            (2 * 86_400, "2 days ago"),
            (14 * 86_400, "2 weeks ago"),
            (90 * 86_400, "3 months ago"),
            (800 * 86_400, "2 years ago"),
        ] {
            let now = Timestamp::from_micros(0) + Duration::from_secs(seconds);
            assert_eq!(ago(now, Timestamp::EPOCH), text);
        }
    }

    #[test]
    fn times_and_exact_durations_look_as_go_writes_them() {
        let time: Timestamp = "2026-11-23T05:27:19.32457Z".parse().unwrap();
        assert_eq!(clock(time), "05:27:19.324");
        assert_eq!(date_and_time(time), "2026-11-23 05:27:19.32457 +0000 UTC");
        for (micros, text) in [
            (950, "950µs"),
            (185_806, "185.806ms"),
            (3_944_629, "3.944629s"),
            (62_500_000, "1m2.5s"),
        ] {
            assert_eq!(exact(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn limits_are_read_as_they_are_shown() {
        for (text, bytes) in [
            ("1GB", 1i64 << 30),
            ("100MB", 100 << 20),
            ("1.5GB", 3 << 29),
            ("512MB", 512 << 20),
        ] {
            assert_eq!(parse_limit("memory", text).unwrap(), bytes);
            assert_eq!(limit("memory", bytes), text);
        }
        for (text, bytes) in [("512m", 512 << 20), ("64KiB", 64 << 10), ("4096", 4096)] {
            assert_eq!(parse_limit("temp_disk", text).unwrap(), bytes);
        }
        assert_eq!(limit("memory", 1000 << 20), "1000MB");
        assert_eq!(limit("memory", 1023 << 10), "1023KB");
        assert_eq!(parse_limit("cpu", "500").unwrap(), 500);
        assert_eq!(limit("max_fd", 12000), "12000");
        for (name, text) in [
            ("memory", "lots"),
            ("memory", "-1GB"),
            ("memory", "1XB"),
            ("cpu", "0.5"),
            ("cpu", "0"),
        ] {
            assert!(parse_limit(name, text).is_err(), "{name}={text}");
        }
    }

    #[test]
    fn a_near_name_is_suggested_and_a_far_one_is_not() {
        let known = ["scale", "route", "release"];
        assert_eq!(nearest("sclae", known.into_iter()), Some("scale"));
        assert_eq!(nearest("scal", known.into_iter()), Some("scale"));
        assert_eq!(nearest("relase", known.into_iter()), Some("release"));
        assert_eq!(nearest("docker", known.into_iter()), None);
    }
}
