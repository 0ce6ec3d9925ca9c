use std::{collections::HashMap, time::Duration};

use api::{
    Controller,
    logs::{Message, Query},
};
use futures::StreamExt;
use types::Timestamp;

use crate::{context::Context, failure::Result, output};

const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// Get app log
///
/// Print an app's log: what its jobs write, and what the router says of its requests.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn log -f -t web
  2026-11-23T05:27:20.020111Z app[web.9d206601-f300-40d4-909b-f3e72168bf1f]: listening on 8080

  $ flynn log -n 100 --raw-output > web.log
  $ flynn log --json | jq .job_id")]
pub struct Args {
    /// Go on with new lines as they are written
    #[arg(short, long)]
    follow: bool,
    /// Only what one job wrote
    #[arg(short, long, value_name = "ID")]
    job: Option<String>,
    /// At most this many lines, the newest
    #[arg(short, long, value_name = "LINES", value_parser = clap::value_parser!(u16).range(0..=10_000))]
    number: Option<u16>,
    /// Print lines as they were written, without time and job
    #[arg(short, long)]
    raw_output: bool,
    /// Print each line as JSON, with all that is known of it
    #[arg(long, conflicts_with = "raw_output")]
    json: bool,
    /// Print what was written to standard error to standard error
    #[arg(short, long)]
    split_stderr: bool,
    /// Only what jobs of one process type wrote
    #[arg(short = 't', long, value_name = "TYPE")]
    process_type: Option<String>,
    /// Also print what the containers' own init says, to standard error
    #[arg(short, long)]
    init: bool,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let (controller, app) = (context.controller()?, context.app()?);
        let mut query = Query {
            follow: self.follow,
            job_id: self.job.clone(),
            lines: self.number.map(usize::from),
            process_type: self.process_type.clone(),
            mark: false,
            stream_types: Some(
                if self.init {
                    "stdout,stderr,init"
                } else {
                    "stdout,stderr"
                }
                .into(),
            ),
        };
        let mut seen = Seen::default();
        let mut pause = PAUSE;
        loop {
            let failure = match self.read(controller, app, &query, &mut seen, &mut pause).await {
                Ok(()) if !self.follow => return Ok(()),
                Ok(()) => None,
                Err(error) if self.follow && error.may_retry() => Some(error),
                Err(error) => return Err(error.into()),
            };
            if let (Some(error), false) = (failure, seen.has_connected) {
                return Err(error.into());
            }
            if pause == PAUSE {
                eprintln!("The log stream broke; connecting again ...");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            // All that is kept: how much was written in the meantime is not known.
            query.lines = None;
        }
    }

    /// Prints one answer of the controller to its end.
    async fn read(
        &self,
        controller: &Controller,
        app: &str,
        query: &Query,
        seen: &mut Seen,
        pause: &mut Duration,
    ) -> std::result::Result<(), api::ClientError> {
        let mut chunks = controller.log(app, query).await?;
        seen.connected();
        *pause = PAUSE;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            if chunk.event == "eof" {
                return Ok(());
            }
            let Some(message) = chunk
                .data
                .and_then(|data| serde_json::from_value::<Message>(data).ok())
            else {
                continue;
            };
            if seen.is_new(&message) {
                self.print(&message);
            }
        }
        Ok(())
    }

    fn print(&self, message: &Message) {
        let line = match () {
            () if self.json => serde_json::to_string(message).expect("a message is JSON"),
            () if self.raw_output => message.msg.clone(),
            () => format(message),
        };
        let to_stderr = message.stream == "init" || (self.split_stderr && message.stream == "stderr");
        if to_stderr {
            eprintln!("{line}");
        } else {
            output::print_line(&line);
        }
    }
}

/// `TIME SOURCE[TYPE.JOB]: TEXT`
fn format(message: &Message) -> String {
    let source = if message.source.is_empty() {
        "app"
    } else {
        &message.source
    };
    let process_type = match (message.process_type.as_str(), message.job_id.as_str()) {
        ("", "") => "",
        ("", _) => "run",
        (process_type, _) => process_type,
    };
    let from = match (process_type, message.job_id.as_str()) {
        ("", _) => String::new(),
        (process_type, "") => format!("[{process_type}]"),
        (process_type, job) => format!("[{process_type}.{job}]"),
    };
    format!("{} {source}{from}: {}", message.timestamp, message.msg)
}

/// Which lines were printed, so that a stream taken up again repeats none.
///
/// Lines of one job's stream come in order of time, so its last time and the number of lines with
/// that time say it all. Lines of different jobs may overtake each other.
#[derive(Default)]
struct Seen {
    by_stream: HashMap<Key, Last>,
    has_connected: bool,
}

type Key = (String, String, String, String);

struct Last {
    time: Timestamp,
    /// The lines of that time.
    texts: Vec<String>,
    /// Of these, the ones that this connection may still repeat.
    repeatable: Vec<String>,
}

impl Seen {
    fn connected(&mut self) {
        self.has_connected = true;
        for last in self.by_stream.values_mut() {
            last.repeatable = last.texts.clone();
        }
    }

    fn is_new(&mut self, message: &Message) -> bool {
        let Message {
            host_id,
            job_id,
            source,
            stream,
            timestamp,
            msg,
            ..
        } = message;
        let key = (host_id.clone(), job_id.clone(), source.clone(), stream.clone());
        let fresh = Last {
            time: *timestamp,
            texts: vec![],
            repeatable: vec![],
        };
        let last = self.by_stream.entry(key).or_insert(fresh);
        if *timestamp < last.time {
            return false;
        }
        if *timestamp > last.time {
            *last = Last {
                time: *timestamp,
                texts: vec![],
                repeatable: vec![],
            };
        } else if let Some(at) = last.repeatable.iter().position(|text| text == msg) {
            last.repeatable.remove(at);
            return false;
        }
        last.texts.push(msg.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(job: &str, micros: i64, text: &str) -> Message {
        Message {
            host_id: "host0".into(),
            job_id: job.into(),
            msg: text.into(),
            process_type: "web".into(),
            source: "app".into(),
            stream: "stdout".into(),
            timestamp: Timestamp::from_micros(micros),
        }
    }

    #[test]
    fn lines_look_as_the_original_printed_them() {
        let mut line = message("9d20", 1_000_001, "hello");
        assert_eq!(format(&line), "1970-01-01T00:00:01.000001Z app[web.9d20]: hello");
        line.process_type.clear();
        assert_eq!(format(&line), "1970-01-01T00:00:01.000001Z app[run.9d20]: hello");
        line.job_id.clear();
        line.source = "router".into();
        assert_eq!(format(&line), "1970-01-01T00:00:01.000001Z router: hello");
    }

    /// Prints the lines of several connections; each is `JOB TIME TEXT`.
    fn check(connections: &[&[(&str, i64, &str)]], expected: &str) {
        let (mut seen, mut printed) = (Seen::default(), vec![]);
        for lines in connections {
            seen.connected();
            for (job, micros, text) in *lines {
                if seen.is_new(&message(job, *micros, text)) {
                    printed.push(*text);
                }
            }
        }
        assert_eq!(printed.join(" "), expected);
    }

    #[test]
    fn a_stream_taken_up_again_repeats_and_loses_nothing() {
        check(
            &[
                &[("a", 1, "x"), ("a", 2, "y")],
                &[("a", 1, "x"), ("a", 2, "y"), ("a", 3, "z")],
            ],
            "x y z",
        );
    }

    #[test]
    fn equal_lines_of_one_moment_are_told_apart_by_their_number() {
        let all = [("a", 1, "x"), ("a", 1, "x"), ("a", 1, "y"), ("a", 1, "x")];
        check(&[&all[..2], &all], "x x y x");
        check(&[&all, &all, &all], "x x y x");
    }

    #[test]
    fn a_job_that_lags_behind_another_is_not_cut() {
        check(
            &[
                &[("a", 5, "x"), ("b", 3, "y")],
                &[("b", 3, "y"), ("b", 4, "z"), ("a", 5, "x")],
            ],
            "x y z",
        );
    }
}
