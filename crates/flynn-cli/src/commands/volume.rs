use clap::Subcommand;
use types::{Volume, VolumeState};

use crate::{
    context::Context,
    failure::{Failure, Result},
    output::{self, row},
    terminal,
};

/// Manage volumes
///
/// Manage the volumes of the app, or where no app is named those of the cluster. Without a verb, list
/// them.
///
/// A volume outlives the jobs that it is attached to: it goes from a job to the one that takes its
/// place.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn -a shop volume
  ID                                    HOST   STATE    ATTACHED JOB                                CREATED        DECOMMISSIONED
  73cb5039-b336-4d7e-a3a9-80d347494ca0  host0  created  host0-9d206601-f300-40d4-909b-f3e72168bf1f  3 minutes ago")]
pub struct Args {
    /// Print as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show a volume
    #[command(after_help = "Examples:

  $ flynn -a shop volume show 73cb5039-b336-4d7e-a3a9-80d347494ca0
  ID:       73cb5039-b336-4d7e-a3a9-80d347494ca0
  Type:     data
  Path:     /data
  Host:     host0
  State:    created")]
    Show { id: String },
    /// Attach a volume to no new job any more
    ///
    /// The volume and what is in it stay. A job that has it keeps it until it ends; the job after that
    /// gets a new, empty one.
    #[command(after_help = "Examples:

  $ flynn -a shop volume decommission 73cb5039-b336-4d7e-a3a9-80d347494ca0
  Decommissioned volume 73cb5039-b336-4d7e-a3a9-80d347494ca0.")]
    Decommission {
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        id: String,
    },
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        match self.verb {
            None => list(context, self.json).await,
            Some(Verb::Show { id }) => show(context, &id, self.json).await,
            Some(Verb::Decommission { yes, id }) => decommission(context, &id, yes).await,
        }
    }
}

async fn list(context: &Context, as_json: bool) -> Result<()> {
    let controller = context.controller()?;
    let volumes = match context.app() {
        Ok(app) => controller.app_volumes(app).await?,
        Err(_) => controller.volumes().await?,
    };
    if as_json {
        output::print_json(&volumes);
        return Ok(());
    }
    let now = output::now();
    let mut rows = vec![row([
        "ID",
        "HOST",
        "STATE",
        "ATTACHED JOB",
        "CREATED",
        "DECOMMISSIONED",
    ])];
    for volume in &volumes {
        let decommissioned = volume.decommissioned_at.map(|at| output::ago(now, at));
        rows.push(row([
            &volume.id.to_string(),
            volume.host_id.as_str(),
            state_of(volume),
            &job_of(volume),
            &output::ago(now, volume.created_at),
            &decommissioned.unwrap_or_default(),
        ]));
    }
    output::print_table(&rows);
    Ok(())
}

fn state_of(volume: &Volume) -> &'static str {
    match volume.state {
        VolumeState::Pending => "pending",
        VolumeState::Created => "created",
        VolumeState::Destroyed => "destroyed",
    }
}

/// The attached job's whole id.
fn job_of(volume: &Volume) -> String {
    volume
        .job
        .map(|job| format!("{}-{job}", volume.host_id))
        .unwrap_or_default()
}

async fn find(context: &Context, id: &str) -> Result<Volume> {
    let (controller, app) = (context.controller()?, context.app()?);
    let not_found = || Failure {
        is_not_found: true,
        ..Failure::new(format!("volume {id} not found")).with_hint("`flynn volume` lists the app's volumes")
    };
    controller
        .app_volume(app, id)
        .await
        .map_err(|error| match error.is_not_found() {
            true => not_found(),
            false => error.into(),
        })
}

async fn show(context: &Context, id: &str, as_json: bool) -> Result<()> {
    let volume = find(context, id).await?;
    if as_json {
        output::print_json(&volume);
        return Ok(());
    }
    let mut rows = vec![
        row(["ID:", &volume.id.to_string()]),
        row(["Type:", volume.kind.as_str()]),
        row(["Path:", &volume.path]),
        row(["Host:", volume.host_id.as_str()]),
        row(["State:", state_of(&volume)]),
        row(["Process Type:", &volume.job_type]),
    ];
    let release = volume.release.map(|release| release.to_string());
    let decommissioned = volume.decommissioned_at.map(output::date_and_time);
    for (name, value) in [
        ("Release:", release),
        (
            "Attached Job:",
            Some(job_of(&volume)).filter(|job| !job.is_empty()),
        ),
        ("Created At:", Some(output::date_and_time(volume.created_at))),
        ("Decommissioned At:", decommissioned),
    ] {
        rows.extend(value.map(|value| row([name, &value])));
    }
    rows.extend(
        volume
            .meta
            .iter()
            .map(|(name, value)| row([&format!("Meta[{name}]"), value])),
    );
    output::print_table(&rows);
    Ok(())
}

async fn decommission(context: &Context, id: &str, yes: bool) -> Result<()> {
    let volume = find(context, id).await?;
    let app = context.app_row().await?;
    let question = format!(
        "No new job of {} will get the volume {} at {} any more.",
        app.name, volume.id, volume.path
    );
    if !yes && terminal::can_ask() && !terminal::confirm_name(&question, &app.name)? {
        eprintln!("Nothing was changed.");
        return Ok(());
    }
    let volume = context
        .controller()?
        .decommission_volume(&app.name, &volume.id.to_string())
        .await?;
    eprintln!("Decommissioned volume {}.", volume.id);
    Ok(())
}
