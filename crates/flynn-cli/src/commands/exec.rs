use api::wire::NewExec;
use types::JobState;

use super::{ps::type_of, run::terminal_env};
use crate::{
    attach,
    context::Context,
    failure::{Failure, Result},
    terminal,
};

/// Run a command in a running job
///
/// Run a command inside a job that runs already, beside its own process, and end with its exit
/// status. The job is named by its id, or by its process type with -t: then any job of the type
/// that is up is taken.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn exec host0-9d206601-f300-40d4-909b-f3e72168bf1f -- ps aux
  $ flynn exec -t web -- bash")]
pub struct Args {
    /// Take a job of this process type
    #[arg(short = 't', long, value_name = "TYPE")]
    process_type: Option<String>,
    /// The job's id (without -t), then the command with its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "JOB> <COMMAND"
    )]
    job_and_command: Vec<String>,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<i32> {
        let (job, command) = match (self.process_type, self.job_and_command) {
            (Some(process_type), command) => (job_of_type(context, &process_type).await?, command),
            (None, mut words) => {
                let job = words.remove(0);
                if words.first().is_some_and(|word| word == "--") {
                    words.remove(0);
                }
                (job, words)
            }
        };
        if command.is_empty() {
            return Err(Failure::new("no command is given")
                .with_hint("name the job and the command: `flynn exec JOB -- COMMAND`"));
        }
        let with_tty = terminal::is_interactive();
        let size = if with_tty { terminal::size() } else { None };
        let exec = NewExec {
            args: command,
            env: terminal_env(with_tty),
            tty: with_tty,
            tty_columns: size.map_or(0, |size| size.columns),
            tty_lines: size.map_or(0, |size| size.lines),
        };
        let attached = context.controller()?.exec(context.app()?, &job, &exec).await;
        let connection = attached.map_err(|error| match error.is_not_found() {
            true => Failure {
                is_not_found: true,
                ..Failure::new(format!("job {job} not found")).with_hint("`flynn ps` lists the app's jobs")
            },
            false => error.into(),
        })?;
        attach::session(connection, with_tty).await
    }
}

async fn job_of_type(context: &Context, process_type: &str) -> Result<String> {
    let jobs = context.controller()?.jobs(context.app()?).await?;
    let found = jobs
        .iter()
        .find(|job| job.state == JobState::Up && type_of(job) == process_type);
    found.map(|job| job.display_id()).ok_or_else(|| {
        Failure::new(format!("no job of type \"{process_type}\" is up"))
            .with_hint("`flynn ps` lists the app's jobs")
    })
}
