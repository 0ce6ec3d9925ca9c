use std::collections::BTreeMap;

use api::dry_run::Trial;
use clap::Subcommand;
use types::{ResourceLimit, Resources};

use super::assignment;
use crate::{
    context::Context,
    deploy::{copy_of, create_and_deploy},
    dry_run,
    failure::{Failure, Result},
    output,
};

/// Manage resource limits
///
/// Manage what each job of a process type may use. Without a verb, list the limits. A change makes
/// a new release and deploys it.
///
/// memory and temp_disk are sizes, cpu is in thousandths of a core, max_fd counts open files and
/// max_processes counts processes and threads.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn limit
  web:     cpu=1000  max_fd=10000  memory=1GB  temp_disk=100MB
  worker:  cpu=1000  max_fd=10000  memory=1GB  temp_disk=100MB

  $ flynn limit set web memory=512MB max_fd=12000 cpu=500
  Created release 5058ae79-64f7-4c39-9a24-0bdd6e7d1bcb")]
pub struct Args {
    /// The limits of one process type only
    #[arg(short = 't', long, value_name = "TYPE")]
    process_type: Option<String>,
    /// Print the limits, or a dry run's answer, as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Set one or more limits of a process type
    #[command(after_help = "Examples:

  $ flynn limit set web memory=512MB max_fd=12000 cpu=500
  Created release 5058ae79-64f7-4c39-9a24-0bdd6e7d1bcb

  $ flynn limit set --dry-run web memory=16GB
  Dry run: nothing was changed.
  No job would be started or stopped; 2 jobs go on.
  error: the deployment would fail: web was not started within 120 s: no host has 16 GB of memory at all: host0, the largest, has 8 GB")]
    Set {
        #[command(flatten)]
        dry_run: dry_run::Options,
        #[arg(value_name = "TYPE")]
        process_type: String,
        #[arg(required = true, value_name = "LIMIT=VALUE")]
        assignments: Vec<String>,
    },
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        match self.verb {
            None => list(context, self.process_type.as_deref(), self.json).await,
            Some(Verb::Set {
                dry_run,
                process_type,
                assignments,
            }) => set(context, &process_type, &assignments, dry_run, self.json).await,
        }
    }
}

async fn list(context: &Context, only: Option<&str>, as_json: bool) -> Result<()> {
    let release = context.release().await?;
    let mut limits: BTreeMap<&String, &Resources> = BTreeMap::new();
    for (process_type, process) in &release.processes {
        if only.is_none_or(|only| only == process_type) {
            limits.insert(process_type, &process.resources);
        }
    }
    if let (Some(only), true) = (only, limits.is_empty()) {
        return Err(unknown_type(only, release.processes.keys()));
    }
    if as_json {
        output::print_json(&limits);
        return Ok(());
    }
    let row = |(process_type, resources): (&&String, &&Resources)| {
        let mut cells = vec![format!("{process_type}:")];
        cells.extend(
            resources
                .0
                .keys()
                .map(|name| format!("{name}={}", output::limit(name, resources.limit(name)))),
        );
        cells
    };
    output::print_table(&limits.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

async fn set(
    context: &Context,
    process_type: &str,
    assignments: &[String],
    options: dry_run::Options,
    as_json: bool,
) -> Result<()> {
    let limits = parse(assignments.iter().map(String::as_str))?;
    let mut release = context.release().await?;
    let Some(process) = release.processes.get_mut(process_type) else {
        return Err(unknown_type(process_type, release.processes.keys()));
    };
    process.resources.0.extend(limits.0);
    if options.dry_run {
        let release = copy_of(&release);
        let trial = Trial::Deploy { release };
        return dry_run::run(context.controller()?, context.app()?, &trial, as_json).await;
    }
    let new = create_and_deploy(context.controller()?, context.app()?, &copy_of(&release)).await?;
    output::print_line(&format!("Created release {}", new.id));
    Ok(())
}

fn unknown_type<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Failure {
    let known = known.map(String::as_str).collect::<Vec<_>>().join(", ");
    let hint = if known.is_empty() {
        "it has none".into()
    } else {
        format!("it has {known}")
    };
    Failure::new(format!("the release has no process type \"{name}\"")).with_hint(hint)
}

/// `NAME=VALUE` each; what placement counts with is the limit itself.
pub fn parse<'a>(assignments: impl Iterator<Item = &'a str>) -> Result<Resources> {
    let mut limits = Resources::default();
    for text in assignments {
        let (name, value) = assignment(text)?;
        if !Resources::DEFAULTS.iter().any(|(known, _)| *known == name) {
            let known = Resources::DEFAULTS.map(|(known, _)| known).join(", ");
            return Err(
                Failure::new(format!("unknown limit \"{name}\"")).with_hint(format!("there is {known}"))
            );
        }
        let value = Some(output::parse_limit(&name, &value)?);
        limits.0.insert(
            name,
            ResourceLimit {
                request: value,
                limit: value,
            },
        );
    }
    Ok(limits)
}
