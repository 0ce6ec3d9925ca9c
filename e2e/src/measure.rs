//! What benchmarks share: series of durations, tables of them, and what the machine is and does.
//!
//! Benchmarks are programs, not tests: nothing here asserts a time. Medians are printed, with the least
//! and the greatest beside them, because other work on a machine shows in the greatest first.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Durations by name, in the order in which the names came.
#[derive(Default)]
pub struct Series {
    names: Vec<String>,
    values: BTreeMap<String, Vec<Duration>>,
}

impl Series {
    pub fn add(&mut self, name: &str, value: Duration) {
        self.name(name).push(value);
    }

    /// Gives a series its place before it has values.
    pub fn name(&mut self, name: &str) -> &mut Vec<Duration> {
        if !self.values.contains_key(name) {
            self.names.push(name.to_owned());
        }
        self.values.entry(name.to_owned()).or_default()
    }

    /// Does something and takes its time.
    pub fn time<T>(&mut self, name: &str, deed: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let done = deed()?;
        self.add(name, began.elapsed());
        Ok(done)
    }

    pub fn median(&self, name: &str) -> Option<Duration> {
        let values = self.values.get(name).filter(|values| !values.is_empty())?;
        Some(quantile(values, 0.5))
    }

    /// One line for each name; the ratio is that of the medians, to the median of `base`.
    pub fn print(&self, unit: Unit, base: Option<&str>) {
        let base = base.and_then(|name| self.median(name));
        let width = self.names.iter().map(String::len).max().unwrap_or(0).max(12);
        let ratio_head = if base.is_some() { "   ratio" } else { "" };
        println!(
            "{:width$}  runs   median      p90    least greatest{ratio_head}   ({})",
            "",
            unit.name()
        );
        for name in &self.names {
            let values = &self.values[name];
            if values.is_empty() {
                continue;
            }
            let at = |share| unit.of(quantile(values, share));
            let ratio = base.map_or(String::new(), |base| {
                format!("{:8.2}", quantile(values, 0.5).as_secs_f64() / base.as_secs_f64())
            });
            println!(
                "{name:width$}  {:4} {:8.2} {:8.2} {:8.2} {:8.2}{ratio}",
                values.len(),
                at(0.5),
                at(0.9),
                at(0.0),
                at(1.0),
            );
        }
    }
}

#[derive(Clone, Copy)]
pub enum Unit {
    Seconds,
    Milliseconds,
}

impl Unit {
    fn of(self, duration: Duration) -> f64 {
        match self {
            Unit::Seconds => duration.as_secs_f64(),
            Unit::Milliseconds => duration.as_secs_f64() * 1000.0,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "seconds",
            Unit::Milliseconds => "milliseconds",
        }
    }
}

/// The value that `share` of all are not above; the lower of two in the middle.
fn quantile(values: &[Duration], share: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort();
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

/// One line on the machine and how busy it is with other things.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name\t: "))
        .unwrap_or("unknown processor");
    let kernel = read("/proc/sys/kernel/osrelease");
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    format!(
        "{cores} x {model}, Linux {}, load average {}",
        kernel.trim(),
        load_average()
    )
}

/// Of the last minute.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// A process's share of memory in kB: its own pages, and of shared ones its part (PSS).
pub fn memory_kb(pid: i32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .context("no Pss in smaps_rollup")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Processor time of a process, its ended threads and the ended children that it waited for.
pub fn processor_time(pid: i32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name and may hold spaces; fields are counted from its end.
    let (_, rest) = text.rsplit_once(") ").context("a strange /proc/PID/stat")?;
    let ticks: u64 = rest
        .split(' ')
        .skip(11)
        .take(4)
        .map(|field| field.parse().unwrap_or(0))
        .sum();
    // The kernel's USER_HZ is 100 on every architecture that this runs on.
    Ok(Duration::from_millis(ticks * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values = [5, 1, 4, 2].map(Duration::from_secs);
        assert_eq!(quantile(&values, 0.5), Duration::from_secs(2));
        assert_eq!(quantile(&values, 0.0), Duration::from_secs(1));
        assert_eq!(quantile(&values, 1.0), Duration::from_secs(5));
    }

    #[test]
    fn a_process_has_memory_and_time() {
        let pid = std::process::id() as i32;
        assert!(memory_kb(pid).unwrap() > 100);
        processor_time(pid).unwrap();
    }
}
