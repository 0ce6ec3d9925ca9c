use std::{collections::BTreeMap, time::Duration};

use api::{
    Controller,
    logs::{Message, Query},
    wire::Job,
};
use futures::StreamExt;
use types::{App, JobId, JobRef};

use crate::{
    context::Context,
    failure::{Failure, Result},
    output,
    why::{self, Facts},
};

const LOG_LINES: usize = 8;
/// How long a job's last lines may take: an answer without them is better than none.
const LOG_TIMEOUT: Duration = Duration::from_secs(3);

/// Say why an app or a job is down, or waits
///
/// Say why an app or a job is as it is: what does not run, why, why that, and what can be done about
/// it, with the last lines that failing jobs wrote.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn why shop
  shop is down: its job is not up
    0 of 1 web job is up
      5a925724-e1bd-4342-8369-9f04aee833cd starts in 8 s, after 7 crashes in a row
      host0-9d206601-f300-40d4-909b-f3e72168bf1f ended 8 seconds ago: exited with status 1
        | Error: Cannot find module 'express'
    shop.flynn.example.com answers 503: no web job is up to lead to
  hint: all that it wrote: `flynn -a shop log -j 9d206601-f300-40d4-909b-f3e72168bf1f`

  $ flynn why 5a925724-e1bd-4342-8369-9f04aee833cd
  5a925724-e1bd-4342-8369-9f04aee833cd waits: no host has 2 GB of memory free: host0 has 812 MB")]
pub struct Args {
    /// Print the causes as JSON
    #[arg(long)]
    json: bool,
    /// An app, or the id of a job [default: the app that -a or the checkout names]
    #[arg(value_name = "APP|JOB")]
    what: Option<String>,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let controller = context.controller()?;
        let (app, job) = match &self.what {
            None => (context.app_row().await?, None),
            Some(name) => find(context, controller, name).await?,
        };
        let facts = gather(context, controller, app, job.as_ref()).await?;
        let cause = match &job {
            Some(job) => why::job(&facts, job),
            None => why::app(&facts),
        };
        match self.json {
            true => output::print_json(&cause),
            false => output::print(&cause.render()),
        }
        Ok(())
    }
}

/// What is named: a job, if it looks like one and there is one, else an app.
async fn find(context: &Context, controller: &Controller, name: &str) -> Result<(App, Option<Job>)> {
    let reference = name.parse::<JobRef>().ok();
    if reference.is_some()
        && let Some(found) = find_job(context, controller, name).await?
    {
        return Ok(found);
    }
    let error = match controller.app(name).await {
        Ok(app) => return Ok((app, None)),
        Err(error) if error.is_not_found() => error,
        Err(error) => return Err(error.into()),
    };
    if reference.is_some() {
        return Err(Failure::new(format!("there is no job {name}"))
            .with_hint("a job that has ended is found by its app: `flynn -a APP why JOB`"));
    }
    let apps = controller.apps().await.unwrap_or_default();
    let near = output::nearest(name, apps.iter().map(|app| app.name.as_str()));
    let hint = match near {
        Some(near) => format!("did you mean {near}? `flynn apps` lists all"),
        None => "`flynn apps` lists the apps, `flynn ps -a` an app's jobs".into(),
    };
    let mut failure = Failure::new(format!("there is no app or job \"{name}\"")).with_hint(hint);
    failure.is_not_found = error.is_not_found();
    Err(failure)
}

async fn find_job(
    context: &Context,
    controller: &Controller,
    name: &str,
) -> Result<Option<(App, Option<Job>)>> {
    if let Ok(app) = context.app() {
        match controller.job(app, name).await {
            Ok(job) => return Ok(Some((controller.app(app).await?, Some(job)))),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let active: Vec<Job> = controller.client().get("/active-jobs").await?;
    let found = active
        .into_iter()
        .find(|job| job.id == name || job.uuid.to_string() == name);
    let Some((job, app)) = found.and_then(|job| job.app.map(|app| (job, app))) else {
        return Ok(None);
    };
    Ok(Some((controller.app(&app.to_string()).await?, Some(job))))
}

async fn gather(context: &Context, controller: &Controller, app: App, about: Option<&Job>) -> Result<Facts> {
    let id = app.id.to_string();
    let release = match app.release {
        Some(release) => Some(controller.release(release).await?),
        None => None,
    };
    let formation = match &release {
        None => None,
        Some(release) => match controller.formation(&id, release.id).await {
            Ok(formation) => Some(formation),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error.into()),
        },
    };
    let mut jobs = controller.jobs(&id).await?;
    jobs.sort_by_key(|job| std::cmp::Reverse(job.created_at));
    let wanted = match about {
        Some(job) => vec![job.uuid],
        None => {
            let of_current: Vec<Job> = jobs
                .iter()
                .filter(|job| job.release == app.release)
                .cloned()
                .collect();
            why::worth_reading(&of_current)
        }
    };
    let mut logs = BTreeMap::new();
    for job in wanted {
        logs.insert(job, last_lines(controller, &id, job).await);
    }
    Ok(Facts {
        now: output::now(),
        release,
        formation,
        jobs,
        deployments: controller.deployments(&id).await?,
        routes: controller.app_routes(&id).await?,
        // Older clusters do not tell; what hosts say is an addition to the rest.
        hosts: controller.hosts().await.unwrap_or_default(),
        logs,
        domain: context.cluster()?.domain().unwrap_or_default().to_owned(),
        app,
    })
}

async fn last_lines(controller: &Controller, app: &str, job: JobId) -> Vec<String> {
    let query = Query {
        job_id: Some(job.to_string()),
        lines: Some(LOG_LINES),
        stream_types: Some("stdout,stderr".into()),
        ..Query::default()
    };
    let read = async {
        let mut lines = vec![];
        let mut chunks = controller.log(app, &query).await?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            if chunk.event == "eof" {
                break;
            }
            let message = chunk
                .data
                .and_then(|data| serde_json::from_value::<Message>(data).ok());
            lines.extend(message.map(|message| message.msg));
        }
        Ok::<_, api::ClientError>(lines)
    };
    match tokio::time::timeout(LOG_TIMEOUT, read).await {
        Ok(Ok(lines)) => lines,
        _ => vec![],
    }
}
