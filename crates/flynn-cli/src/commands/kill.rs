use crate::{
    context::Context,
    failure::{Failure, Result},
};

/// Kill jobs
///
/// Kill jobs. Where the app is scaled to have them, others are started in their place.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn kill host0-6f437e9e-dad2-4bcb-84ef-b01a37e3e438
  Job host0-6f437e9e-dad2-4bcb-84ef-b01a37e3e438 killed.")]
pub struct Args {
    /// Ids of the jobs, as `flynn ps` prints them
    #[arg(required = true)]
    jobs: Vec<String>,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let (controller, app) = (context.controller()?, context.app()?);
        let mut failures = vec![];
        for job in &self.jobs {
            match controller.stop_job(app, job).await {
                Ok(()) => eprintln!("Job {job} killed."),
                Err(error) => {
                    let is_not_found = error.is_not_found();
                    let reason = if is_not_found {
                        "there is no such job".into()
                    } else {
                        error.to_string()
                    };
                    let failure = Failure::new(format!("could not kill job {job}: {reason}"));
                    failures.push(Failure {
                        is_not_found,
                        ..failure
                    });
                }
            }
        }
        let Some(last) = failures.pop() else { return Ok(()) };
        for failure in &failures {
            eprint!("{}", failure.render());
        }
        Err(last.with_hint("`flynn ps` lists the app's jobs"))
    }
}
