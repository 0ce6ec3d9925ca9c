use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use api::{
    Controller,
    dry_run::Trial,
    wire::{Job, NewScaleRequest},
};
use types::{
    Exit, Formation, JobState, ObjectType, Processes, Release, ReleaseId, ScaleRequest, ScaleRequestState,
    Tags,
};

use super::ps::{type_of, waiting};
use crate::{
    context::Context,
    dry_run,
    events::{Follower, Next},
    failure::{Failure, Result},
    output,
};

/// Change how many jobs run
///
/// Change how many jobs of each process type run, and on hosts with which tags. Without arguments,
/// show the current scale.
///
/// An argument is TYPE=COUNT[,KEY=VALUE...]: so many jobs of the type, on hosts that have all
/// these tags. KEY= takes a tag back, a comma alone takes all of them back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn scale
  web=4 worker=2

  $ flynn scale web=2 worker=5
  scaling web: 4=>2, worker: 2=>5

  02:28:34.333 ==> web host0-3f656af6-f1e4-4092-aa70-37046236b203 down
  02:28:35.479 ==> worker host0-84f70ca1-8c96-41ef-83a1-78a19db867a3 up

  scale completed in 1.944629s

  $ flynn scale --dry-run web=8
  Dry run: nothing was changed.
    start 6 web on host0
    7 jobs go on
  It fits.")]
pub struct Args {
    /// Do not wait until the jobs have followed
    #[arg(short, long)]
    no_wait: bool,
    /// Release to scale [default: the current one]
    #[arg(short, long, value_name = "ID")]
    release: Option<ReleaseId>,
    /// Show what runs of all releases
    #[arg(short, long, conflicts_with_all = ["release", "changes"])]
    all: bool,
    /// How many seconds to wait
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    #[command(flatten)]
    dry_run: dry_run::Options,
    /// Print the scale, or a dry run's answer, as JSON
    #[arg(long)]
    json: bool,
    /// Process types with their counts, such as web=2 or db=1,disk=ssd
    #[arg(value_name = "TYPE=COUNT[,KEY=VALUE...]")]
    changes: Vec<String>,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        if self.all {
            return list_all(context, self.json).await;
        }
        let (controller, app) = (context.controller()?, context.app()?);
        let release = match self.release {
            Some(id) => controller
                .release(id)
                .await
                .map_err(|error| match error.is_not_found() {
                    true => Failure::new(format!("release {id} not found"))
                        .with_hint("`flynn release` lists them"),
                    false => error.into(),
                })?,
            None => context.release().await?,
        };
        let formation = match controller.formation(app, release.id).await {
            Ok(formation) => Some(formation),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error.into()),
        };
        let (processes, tags) = formation
            .map(|formation| (formation.processes, formation.tags))
            .unwrap_or_default();
        if self.changes.is_empty() {
            return list(&release, processes, &tags, self.json);
        }
        let wanted = parse(&self.changes, &release, &tags)?;
        if wanted.is_already(&processes, &tags) {
            eprintln!("requested scale equals current scale, nothing to do!");
            return Ok(());
        }
        if self.dry_run.dry_run {
            let (release, request) = (release.id, wanted.request());
            let trial = Trial::Scale { release, request };
            return dry_run::run(controller, app, &trial, self.json).await;
        }
        if self.json {
            return Err(Failure::new("a scale has no JSON form")
                .with_hint("--json prints the current scale, or with --dry-run what a scale would do"));
        }
        output::print(&format!("scaling {}\n\n", wanted.difference(&processes)));
        let started = Instant::now();
        let mut events = Follower::open(
            controller,
            app,
            &["job", "scale_request", "scale_request_cancelation"],
        )
        .await?;
        let request = controller.scale(app, release.id, &wanted.request()).await?;
        if self.no_wait {
            return Ok(());
        }
        if request.state != ScaleRequestState::Complete {
            let patience = Duration::from_secs(self.timeout);
            match tokio::time::timeout(patience, follow(&mut events, controller, app, &request)).await {
                Ok(end) => end?,
                Err(_) => return Err(timed_out(controller, app, &request, self.timeout).await),
            }
        }
        output::print(&format!(
            "\nscale completed in {}\n",
            output::exact(started.elapsed())
        ));
        Ok(())
    }
}

fn list(release: &Release, mut processes: Processes, tags: &Tags, as_json: bool) -> Result<()> {
    for process_type in release.processes.keys() {
        processes.entry(process_type.clone()).or_insert(0);
    }
    match as_json {
        true => output::print_json(&processes),
        false => output::print_line(&counts(&processes, tags)),
    }
    Ok(())
}

/// `web=2 worker=1,disk=ssd`
fn counts(processes: &Processes, tags: &Tags) -> String {
    let count = |(process_type, count): (&String, &u32)| {
        let tags = tags.get(process_type).into_iter().flatten();
        let tags: String = tags.map(|(key, value)| format!(",{key}={value}")).collect();
        format!("{process_type}={count}{tags}")
    };
    processes.iter().map(count).collect::<Vec<_>>().join(" ")
}

async fn list_all(context: &Context, as_json: bool) -> Result<()> {
    let (controller, app) = (context.controller()?, context.app()?);
    let current = context.find_release().await?.map(|release| release.id);
    let mut formations = controller.formations(app).await?;
    formations.retain(|formation| formation.processes.values().any(|count| *count > 0));
    formations.sort_by_key(|formation| Some(formation.release) != current);
    if as_json {
        output::print_json(&formations);
        return Ok(());
    }
    let text = |formation: &Formation| {
        let mark = if Some(formation.release) == current {
            " (current)"
        } else {
            ""
        };
        let mut running = formation.processes.clone();
        running.retain(|_, count| *count > 0);
        format!(
            "{}{mark}\n{}\n",
            formation.release,
            counts(&running, &formation.tags)
        )
    };
    output::print(&formations.iter().map(text).collect::<Vec<_>>().join("\n"));
    Ok(())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    processes: Processes,
    /// Of the types whose tags change, all that they have afterwards.
    tags: Tags,
}

fn parse(changes: &[String], release: &Release, tags_before: &Tags) -> Result<Wanted> {
    let mut wanted = Wanted::default();
    let mut unknown = vec![];
    for change in changes {
        let form = || {
            Failure::new(format!("{change:?} is no scale")).with_hint("write it as TYPE=COUNT, such as web=2")
        };
        let (process_type, rest) = change.split_once('=').ok_or_else(form)?;
        let (count, tags) = match rest.split_once(',') {
            Some((count, tags)) => (count, Some(tags)),
            None => (rest, None),
        };
        if count.starts_with('-') {
            return Err(Failure::new(format!(
                "process quantities cannot be negative in {change:?}"
            )));
        }
        let count = count.parse().map_err(|_| form())?;
        if !release.processes.contains_key(process_type) {
            unknown.push(process_type);
        }
        if let Some(tags) = tags {
            let before = tags_before.get(process_type).cloned().unwrap_or_default();
            wanted.tags.insert(
                process_type.to_owned(),
                change_tags(before, tags).ok_or_else(form)?,
            );
        }
        wanted.processes.insert(process_type.to_owned(), count);
    }
    if unknown.is_empty() {
        return Ok(wanted);
    }
    let quoted: Vec<String> = unknown.iter().map(|name| format!("{name:?}")).collect();
    let failure = Failure::new(format!("unknown process types: {}", quoted.join(", ")));
    let known: Vec<&str> = release.processes.keys().map(String::as_str).collect();
    Err(
        match (
            known.as_slice(),
            output::nearest(unknown[0], known.iter().copied()),
        ) {
            ([], _) => {
                failure.with_hint("the app's release has none: deploy it first with `git push flynn main`")
            }
            (_, Some(near)) => {
                failure.with_hint(format!("it has {}; did you mean {near}?", known.join(", ")))
            }
            (_, None) => failure.with_hint(format!("it has {}", known.join(", "))),
        },
    )
}

/// `key=value` sets a tag, `key=` removes it, nothing at all removes all.
fn change_tags(mut tags: BTreeMap<String, String>, changes: &str) -> Option<BTreeMap<String, String>> {
    if changes.is_empty() {
        return Some(BTreeMap::new());
    }
    for change in changes.split(',') {
        match change.split_once('=')? {
            ("", _) => return None,
            (key, "") => tags.remove(key),
            (key, value) => tags.insert(key.to_owned(), value.to_owned()),
        };
    }
    Some(tags)
}

impl Wanted {
    fn is_already(&self, processes: &Processes, tags: &Tags) -> bool {
        let none = BTreeMap::new();
        self.processes
            .iter()
            .all(|(name, count)| processes.get(name).unwrap_or(&0) == count)
            && self
                .tags
                .iter()
                .all(|(name, wanted)| tags.get(name).unwrap_or(&none) == wanted)
    }

    /// `web: 4=>2, worker: 2=>5`
    fn difference(&self, before: &Processes) -> String {
        let mut parts = vec![];
        for (name, count) in &self.processes {
            let before = before.get(name).copied().unwrap_or(0);
            if before != *count {
                parts.push(format!("{name}: {before}=>{count}"));
            }
        }
        parts.join(", ")
    }

    /// What is not mentioned stays as it is.
    fn request(&self) -> NewScaleRequest {
        let new_tags = (!self.tags.is_empty()).then(|| self.tags.clone());
        NewScaleRequest {
            new_processes: Some(self.processes.clone()),
            new_tags,
        }
    }
}

/// Prints what happens to the release's jobs until the request is done.
async fn follow(
    events: &mut Follower,
    controller: &Controller,
    app: &str,
    request: &ScaleRequest,
) -> Result<()> {
    loop {
        let event = match events.next().await? {
            Next::Event(event) => event,
            Next::Reconnected => {
                if jobs_have_followed(controller, app, request).await? {
                    return Ok(());
                }
                continue;
            }
        };
        if event.object_type == ObjectType::Job {
            let Ok(job) = serde_json::from_value::<Job>((*event.data).clone()) else {
                continue;
            };
            if job.release == Some(request.release) && !job.process_type.is_empty() {
                output::print_line(&format!(
                    "{} ==> {}",
                    output::clock(event.created_at),
                    describe(&job)
                ));
            }
        } else if event.object_id == request.id.to_string() {
            let Ok(now) = serde_json::from_value::<ScaleRequest>((*event.data).clone()) else {
                continue;
            };
            match now.state {
                ScaleRequestState::Pending => {}
                ScaleRequestState::Complete => return Ok(()),
                ScaleRequestState::Cancelled => {
                    return Err(
                        Failure::new("the scale was replaced by another one before it was complete")
                            .with_hint("`flynn scale` shows what is wanted now"),
                    );
                }
            }
        }
    }
}

/// `web host0-… down`, with how it ended if it was not asked to.
fn describe(job: &Job) -> String {
    let mut text = format!("{} {} {}", type_of(job), job.display_id(), job.state);
    match &job.exit {
        Some(Exit::Code(0) | Exit::Signal(_)) | None => {}
        Some(exit) if job.state == JobState::Down => text.push_str(&format!(" ({exit})")),
        Some(_) => {}
    }
    text
}

/// Whether as many jobs are up as the request wants; for when its events were missed.
async fn jobs_have_followed(controller: &Controller, app: &str, request: &ScaleRequest) -> Result<bool> {
    let jobs = controller.jobs(app).await?;
    let mut running: Processes = BTreeMap::new();
    for job in jobs
        .iter()
        .filter(|job| job.release == Some(request.release) && job.state != JobState::Down)
    {
        if job.state != JobState::Up {
            return Ok(false);
        }
        *running.entry(job.process_type.clone()).or_default() += 1;
    }
    let wanted = request.new_processes.iter().flatten();
    Ok(wanted
        .into_iter()
        .all(|(name, count)| running.get(name).unwrap_or(&0) == count))
}

async fn timed_out(controller: &Controller, app: &str, request: &ScaleRequest, seconds: u64) -> Failure {
    let failure = Failure::new(format!(
        "timed out waiting for scale to complete (waited {seconds} seconds)"
    ));
    let jobs = controller.jobs(app).await.unwrap_or_default();
    let mut reasons: Vec<String> = vec![];
    for job in jobs.iter().filter(|job| job.release == Some(request.release)) {
        match job.state {
            JobState::Pending | JobState::Starting if !job.waiting.is_empty() => reasons.push(waiting(job)),
            JobState::Pending | JobState::Starting => {
                reasons.push(format!("{} {} is {}", type_of(job), job.display_id(), job.state));
            }
            _ => {}
        }
    }
    reasons.push("the cluster goes on trying; `flynn ps` shows how far it is".into());
    failure.with_hint(reasons.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A release with web and worker, of which two web jobs run on hosts with an SSD.
    fn check(changes: &str, expected: &str) {
        let id = "00000000-0000-0000-0000-000000000001";
        let release = serde_json::from_value(json!({
            "id": id, "app_id": id, "created_at": "2026-11-23T00:00:00Z", "processes": { "web": {}, "worker": {} },
        }))
        .unwrap();
        let before: Processes = [("web".to_owned(), 2)].into();
        let tags: Tags = [("web".to_owned(), [("disk".to_owned(), "ssd".to_owned())].into())].into();
        let changes: Vec<String> = changes.split(' ').map(str::to_owned).collect();
        let text = match parse(&changes, &release, &tags) {
            Ok(wanted) if wanted.is_already(&before, &tags) => "nothing to do".into(),
            Ok(wanted) => {
                format!(
                    "{} | {}",
                    wanted.difference(&before),
                    serde_json::to_string(&wanted.request()).unwrap()
                )
            }
            Err(failure) => failure.render(),
        };
        assert_eq!(text.trim_end(), expected);
    }

    #[test]
    fn a_scale_names_what_changes_and_leaves_the_rest() {
        check(
            "web=4 worker=1",
            r#"web: 2=>4, worker: 0=>1 | {"new_processes":{"web":4,"worker":1}}"#,
        );
        check("web=2", "nothing to do");
        check("web=2,disk=ssd", "nothing to do");
    }

    #[test]
    fn tags_are_added_changed_and_removed() {
        check(
            "web=2,mem=big",
            r#" | {"new_processes":{"web":2},"new_tags":{"web":{"disk":"ssd","mem":"big"}}}"#,
        );
        check(
            "web=1,disk=",
            r#"web: 2=>1 | {"new_processes":{"web":1},"new_tags":{"web":{}}}"#,
        );
        check(
            "web=2,",
            r#" | {"new_processes":{"web":2},"new_tags":{"web":{}}}"#,
        );
    }

    #[test]
    fn what_cannot_be_scaled_is_refused() {
        check(
            "wroker=1",
            "error: unknown process types: \"wroker\"\nhint: it has web, worker; did you mean worker?",
        );
        check(
            "bogus=1 x=2",
            "error: unknown process types: \"bogus\", \"x\"\nhint: it has web, worker",
        );
        check(
            "web=-1",
            "error: process quantities cannot be negative in \"web=-1\"",
        );
        for text in ["web", "web=", "web=x", "web=1,disk", "web=1,=x"] {
            check(
                text,
                &format!("error: {text:?} is no scale\nhint: write it as TYPE=COUNT, such as web=2"),
            );
        }
    }
}
