//! The controller's API, a file per kind of object.

mod apps;
mod attempts;
mod cluster;
mod events;
mod formations;
mod internal;
mod jobs;
mod providers;
mod releases;
mod routes;
mod sinks;
mod volumes;

use crate::document::Api;

pub fn api() -> Api {
    Api {
        title: "Flynn controller",
        about: "Apps, their releases and jobs, and everything else that a cluster keeps. \
            \n\nEvery successful answer is 200 (or 101, where a connection changes its protocol); lists are \
            arrays, newest first where nothing else is said. Errors are `{code, message, detail?, hint?, \
            retry}`; `retry` says whether the same request may succeed later. Bodies are JSON and are sent \
            with `Content-Type: application/json`; fields that are not known are ignored. Times are RFC 3339 \
            in UTC. Streams are server-sent events, with a comment every 30 s to show that the other side is \
            there. Where this differs from the controller of 2021, docs/api/differences.md says so.",
        server: "https://controller.flynn.example.com",
        not_found_is_empty: true,
        groups: vec![
            (
                "Apps",
                "What users deploy: a name, its releases, and how they are deployed.",
                apps::operations(),
            ),
            (
                "Releases",
                "Images, environment and process types together: immutable, and what a rollback goes back to.",
                releases::operations(),
            ),
            (
                "Formations",
                "How many jobs of each type run.",
                formations::operations(),
            ),
            ("Jobs", "One process in one container.", jobs::operations()),
            (
                "Routes",
                "How requests from outside come to a service.",
                routes::operations(),
            ),
            (
                "Resources",
                "What providers make for apps: databases, for example.",
                providers::operations(),
            ),
            (
                "Events",
                "What happened, for watching it happen.",
                events::operations(),
            ),
            (
                "Attempts and images",
                "What a change would do; and layers of images, for moving apps between clusters. Additions to the \
                 contract of 2021.",
                attempts::operations(),
            ),
            (
                "Volumes",
                "Directories that outlive the jobs that have them.",
                volumes::operations(),
            ),
            ("Sinks", "Where logs are shipped.", sinks::operations()),
            ("Cluster", "The cluster about itself.", cluster::operations()),
            (
                "Internal",
                "Between the platform's own parts, with a key of their own. No contract with anybody else.",
                internal::operations(),
            ),
        ],
    }
}
