//! What `--dry-run` prints: what a change would start and stop, and whether there is room for it.

use std::collections::BTreeMap;

use api::{
    Controller,
    dry_run::{Preview, PreviewJob, Trial},
};

use crate::{
    failure::{Failure, Result},
    output,
};

/// Options of commands that can be tried.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Options {
    /// Change nothing; say what would be started and stopped, and whether it fits
    #[arg(long)]
    pub dry_run: bool,
}

/// Asks what a change would do and prints the answer; fails if there is no room for it.
pub async fn run(controller: &Controller, app: &str, trial: &Trial, as_json: bool) -> Result<()> {
    let preview = controller
        .dry_run(app, trial)
        .await
        .map_err(|error| match error.is_not_found() {
            true => Failure {
                is_not_found: true,
                ..Failure::new("the cluster cannot say what would happen").with_hint(
                    "either what is changed does not exist, or the cluster's version is older than dry runs",
                )
            },
            false => error.into(),
        })?;
    if as_json {
        output::print_json(&preview);
    } else {
        output::print(&in_words(&preview));
    }
    match preview.fits {
        true => Ok(()),
        false => Err(refusal(&preview)),
    }
}

fn in_words(preview: &Preview) -> String {
    let mut text = String::from("Dry run: nothing was changed.\n");
    if let Some(view) = &preview.route {
        let route = &view.route;
        let address = match route.kind {
            types::RouteKind::Http => format!("{}{}", route.domain, route.path),
            types::RouteKind::Tcp => format!("port {}", route.port),
        };
        text.push_str(&format!("  route {address} to {}\n", route.service));
    }
    for (verb, jobs) in [("start", &preview.starts), ("stop", &preview.stops)] {
        for ((process_type, host), count) in by_place(jobs) {
            let host = if host.is_empty() {
                String::new()
            } else {
                format!(" on {host}")
            };
            text.push_str(&format!("  {verb} {count} {process_type}{host}\n"));
        }
    }
    let mut waits: BTreeMap<(bool, &str, &str), usize> = BTreeMap::new();
    for job in &preview.waits {
        let key = (
            waits_already(job),
            job.process_type.as_str(),
            job.waiting.as_str(),
        );
        *waits.entry(key).or_default() += 1;
    }
    for ((already, process_type, reason), count) in waits {
        let no = if already { "still no" } else { "no" };
        text.push_str(&format!("  {no} place for {count} {process_type}: {reason}\n"));
    }
    let kept = match preview.kept {
        1 => "1 job goes on".to_owned(),
        kept => format!("{kept} jobs go on"),
    };
    text.push_str(
        &match (preview.starts.len() + preview.stops.len(), preview.kept) {
            (0, 0) => "No job would be started or stopped.\n".to_owned(),
            (0, _) => format!("No job would be started or stopped; {kept}.\n"),
            (_, 0) => String::new(),
            (_, _) => format!("  {kept}\n"),
        },
    );
    if preview.fits {
        text.push_str("It fits.\n");
    }
    text
}

/// Jobs that exist have ids.
fn waits_already(job: &PreviewJob) -> bool {
    !job.id.is_empty()
}

fn by_place(jobs: &[PreviewJob]) -> BTreeMap<(&str, &str), usize> {
    let mut places = BTreeMap::new();
    for job in jobs {
        let host = job.host.as_ref().map_or("", |host| host.as_str());
        *places.entry((job.process_type.as_str(), host)).or_default() += 1;
    }
    places
}

fn refusal(preview: &Preview) -> Failure {
    if !preview.error.is_empty() {
        return Failure::new(format!("the deployment would fail: {}", preview.error))
            .with_hint("the release before it would go on");
    }
    let count = preview.waits.iter().filter(|job| !waits_already(job)).count();
    let jobs = if count == 1 { "job" } else { "jobs" };
    Failure::new(format!(
        "it does not fit: there would be no place for {count} {jobs}"
    ))
    .with_hint("the jobs would wait; a host more, smaller limits or a smaller scale make room")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(process_type: &str, host: &str, waiting: &str, count: usize) -> Vec<PreviewJob> {
        let job = PreviewJob {
            process_type: process_type.into(),
            host: host.parse().ok(),
            id: String::new(),
            waiting: waiting.into(),
        };
        vec![job; count]
    }

    #[test]
    fn a_change_that_fits_is_told_by_place() {
        let preview = Preview {
            starts: [jobs("web", "host0", "", 2), jobs("web", "host1", "", 1)].concat(),
            stops: jobs("worker", "host0", "", 1),
            kept: 4,
            fits: true,
            ..Preview::default()
        };
        insta::assert_snapshot!(in_words(&preview), @r"
        Dry run: nothing was changed.
          start 2 web on host0
          start 1 web on host1
          stop 1 worker on host0
          4 jobs go on
        It fits.
        ");
    }

    #[test]
    fn a_change_that_does_not_fit_says_what_lacks() {
        let reason = "no host has 2 GB of memory free: host0 has 812 MB";
        let preview = Preview {
            starts: jobs("web", "host0", "", 1),
            waits: jobs("web", "", reason, 2),
            ..Preview::default()
        };
        let text = format!("{}{}", in_words(&preview), refusal(&preview).render());
        insta::assert_snapshot!(text, @r"
        Dry run: nothing was changed.
          start 1 web on host0
          no place for 2 web: no host has 2 GB of memory free: host0 has 812 MB
        error: it does not fit: there would be no place for 2 jobs
        hint: the jobs would wait; a host more, smaller limits or a smaller scale make room
        ");
    }

    #[test]
    fn a_change_that_touches_no_job_says_so() {
        let preview = Preview {
            kept: 3,
            fits: true,
            ..Preview::default()
        };
        insta::assert_snapshot!(in_words(&preview), @r"
        Dry run: nothing was changed.
        No job would be started or stopped; 3 jobs go on.
        It fits.
        ");
    }
}
