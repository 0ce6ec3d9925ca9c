use std::collections::BTreeMap;

use api::wire::NewJob;
use types::ReleaseId;

use super::limit;
use crate::{attach, context::Context, failure::Result, terminal};

/// Run a job
///
/// Run a command in a new job with the app's code and environment, and end with its exit status.
///
/// At a terminal the job has a terminal too. Otherwise its output and error output stay apart, and
/// signals sent to flynn go to the job.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn run bash
  $ flynn run -- rake db:migrate
  $ flynn run --limits memory=2GB -- ./import < data.csv
  $ flynn run --mounts-from db -- ls /data
  $ flynn run -d ./long-task
  host0-bf59f0f6-6872-44e7-9074-9c997b60b662")]
pub struct Args {
    /// Start the job, print its id and leave it running (its output goes to the log)
    #[arg(short, long)]
    detached: bool,
    /// Release to run [default: the current one]
    #[arg(short, long, value_name = "ID")]
    release: Option<ReleaseId>,
    /// Send the output to the app's log too
    #[arg(short = 'l', long)]
    enable_log: bool,
    /// Limits of the job, separated by commas (see `flynn limit --help`)
    #[arg(long, value_delimiter = ',', value_name = "LIMIT=VALUE")]
    limits: Vec<String>,
    /// Process type whose volumes the job is to have, while no job of it has them
    #[arg(long, value_name = "TYPE")]
    mounts_from: Option<String>,
    /// Devices of the host for the job, as older versions gave them (zfs, kvm, loop)
    #[arg(long, value_delimiter = ',', value_name = "PROFILES", hide = true)]
    profiles: Vec<String>,
    /// Program to run before the command, as older versions had it
    #[arg(short, long, hide = true)]
    entrypoint: Option<String>,
    /// Command with its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<i32> {
        let resources = limit::parse(self.limits.iter().map(String::as_str))?;
        let release = match self.release {
            Some(id) => id,
            None => context.release().await?.id,
        };
        let with_tty = !self.detached && terminal::is_interactive();
        let size = if with_tty { terminal::size() } else { None };
        let job = NewJob {
            release: Some(release),
            release_env: true,
            args: self.entrypoint.into_iter().chain(self.command).collect(),
            env: terminal_env(with_tty),
            tty: with_tty,
            tty_columns: size.map_or(0, |size| size.columns),
            tty_lines: size.map_or(0, |size| size.lines),
            disable_log: !self.enable_log && !self.detached,
            resources,
            mounts_from: self.mounts_from.unwrap_or_default(),
            profiles: self.profiles,
            ..NewJob::default()
        };
        let (controller, app) = (context.controller()?, context.app()?);
        if self.detached {
            eprintln!("{}", controller.run_job(app, &job).await?.display_id());
            return Ok(0);
        }
        attach::session(controller.run_job_attached(app, &job).await?, with_tty).await
    }
}

/// What a program needs to know of the user's terminal.
pub fn terminal_env(with_tty: bool) -> BTreeMap<String, String> {
    let term = std::env::var("TERM")
        .ok()
        .filter(|term| with_tty && !term.is_empty());
    term.map(|term| ("TERM".to_owned(), term)).into_iter().collect()
}
