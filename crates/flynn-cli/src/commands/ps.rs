use types::JobState;

use crate::{
    context::Context,
    failure::Result,
    output::{self, row},
};

/// List jobs
///
/// List an app's jobs, oldest first: those that run, start, stop, or wait to be started. What a
/// job waits for is said below the list.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn ps
  ID                                          TYPE  STATE  CREATED             RELEASE
  host0-9d206601-f300-40d4-909b-f3e72168bf1f  web   up     About a minute ago  81c3439d-ae8b-4fb6-8ad7-4525f94d13f7

  $ flynn ps --all --quiet --type run
  host0-bf59f0f6-6872-44e7-9074-9c997b60b662")]
pub struct Args {
    /// Show jobs that have ended too
    #[arg(short, long)]
    all: bool,
    /// Show what each job runs
    #[arg(short, long)]
    command: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Only jobs of this process type; one-off jobs are of type run
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    process_type: Option<String>,
    /// Print the jobs as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let mut jobs = context.controller()?.jobs(context.app()?).await?;
        jobs.retain(|job| self.all || job.state != JobState::Down);
        if let Some(wanted) = &self.process_type {
            jobs.retain(|job| type_of(job) == wanted);
        }
        jobs.sort_by_key(|job| job.created_at);
        if self.json {
            output::print_json(&jobs);
            return Ok(());
        }
        if self.quiet {
            output::print(
                &jobs
                    .iter()
                    .map(|job| format!("{}\n", job.display_id()))
                    .collect::<String>(),
            );
            return Ok(());
        }
        let now = output::now();
        let mut rows = vec![row(["ID", "TYPE", "STATE", "CREATED", "RELEASE"])];
        if self.command {
            rows[0].push("COMMAND".into());
        }
        for job in &jobs {
            let release = job.release.map(|release| release.to_string()).unwrap_or_default();
            let created = output::ago(now, job.created_at);
            let mut cells = row([
                &job.display_id(),
                type_of(job),
                job.state.as_str(),
                &created,
                &release,
            ]);
            if self.command {
                cells.push(job.args.join(" "));
            }
            rows.push(cells);
        }
        output::print_table(&rows);
        for job in jobs.iter().filter(|job| !job.waiting.is_empty()) {
            eprintln!("{}", waiting(job));
        }
        Ok(())
    }
}

/// A job's type as it is shown.
pub fn type_of(job: &api::wire::Job) -> &str {
    if job.process_type.is_empty() {
        "run"
    } else {
        &job.process_type
    }
}

/// What a job waits for, in a line.
pub fn waiting(job: &api::wire::Job) -> String {
    format!("{} {} waits: {}", type_of(job), job.display_id(), job.waiting)
}
