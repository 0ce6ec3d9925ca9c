//! `flynn cluster log-sink`: where the lines of all apps are sent besides being kept.

use clap::{Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use crate::{
    context::Context,
    failure::{Failure, Result},
    output::{self, row},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the sinks as JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Add a log sink
    #[command(subcommand)]
    Add(Add),
    /// Remove a log sink
    #[command(after_help = "Examples:

  $ flynn cluster log-sink remove 2e02b087-6e1a-4fb7-ac5d-44548c1701b9
  Deleted sink 2e02b087-6e1a-4fb7-ac5d-44548c1701b9.")]
    Remove { id: String },
}

#[derive(Debug, Subcommand)]
enum Add {
    /// Send lines to a syslog server, as RFC 5424 messages
    Syslog(Syslog),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Format {
    /// Each message after its length
    Rfc6587,
    /// Each message with a newline after it
    Newline,
    /// The same, with the prefix before the message's header
    PrefixedNewline,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn cluster log-sink add syslog syslog+tls://rsyslog.host:514/
  Created sink 2e02b087-6e1a-4fb7-ac5d-44548c1701b9.

  A service that wants a token before each message:
  $ flynn cluster log-sink add syslog --format prefixed_newline syslog+tls://logs.example.com:443/ TOKEN")]
struct Syslog {
    /// Name apps by their ids and not by their names
    #[arg(long)]
    use_ids: bool,
    /// Do not check the server's certificate; for tests
    #[arg(long)]
    insecure: bool,
    /// How messages are told from each other
    #[arg(long, value_enum, default_value = "rfc6587")]
    format: Format,
    /// syslog://HOST[:PORT]/ or syslog+tls://HOST[:PORT]/
    url: String,
    /// Text before each line, a template in which {{.ID}} is the job's id
    prefix: Option<String>,
}

/// A sink as the list shows it; what it is configured by is shown as it came.
#[derive(Debug, Serialize, Deserialize)]
struct Sink {
    id: String,
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<Box<RawValue>>,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let client = context.controller()?.client();
        match self.verb {
            None => {
                let sinks: Vec<Sink> = client.get("/sinks").await?;
                if self.json {
                    output::print_json(&sinks);
                    return Ok(());
                }
                let mut rows = vec![row(["ID", "KIND", "CONFIG"])];
                rows.extend(sinks.iter().map(|sink| {
                    let config = sink.config.as_ref().map_or("", |config| config.get());
                    row([&sink.id, &sink.kind, config])
                }));
                output::print_table(&rows);
            }
            Some(Verb::Add(Add::Syslog(syslog))) => {
                let sink: Sink = client.post("/sinks", &syslog.request()).await?;
                eprintln!("Created sink {}.", sink.id);
            }
            Some(Verb::Remove { id }) => {
                if id.parse::<types::Uuid>().is_err() {
                    return Err(Failure::new(format!("{id:?} is no id of a sink"))
                        .with_hint("`flynn cluster log-sink` lists the sinks"));
                }
                client
                    .delete(&format!("/sinks/{id}"))
                    .await
                    .map_err(|error| match error.is_not_found() {
                        true => Failure::new(format!("sink {id} not found"))
                            .with_hint("`flynn cluster log-sink` lists the sinks"),
                        false => error.into(),
                    })?;
                eprintln!("Deleted sink {id}.");
            }
        }
        Ok(())
    }
}

impl Syslog {
    fn request(&self) -> serde_json::Value {
        let format = match self.format {
            Format::Rfc6587 => "rfc6587",
            Format::Newline => "newline",
            Format::PrefixedNewline => "prefixed_newline",
        };
        let mut config = json!({ "url": self.url, "format": format });
        if let Some(prefix) = &self.prefix {
            config["template"] = json!(prefix);
        }
        for (name, is_set) in [("use_ids", self.use_ids), ("insecure", self.insecure)] {
            if is_set {
                config[name] = json!(true);
            }
        }
        json!({ "kind": "syslog", "config": config })
    }
}
