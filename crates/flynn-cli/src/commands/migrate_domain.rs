//! `flynn cluster migrate-domain`: names below another domain, and this configuration after them.

use std::time::{Duration, Instant};

use serde_json::json;
use types::DomainMigration;

use crate::{
    config::{self, Cluster, Config},
    context::{self, Context},
    deploy::TransposeTimeout,
    events::{Follower, Next},
    failure::{Failure, Result},
    git, terminal,
};

/// What the original allowed for it.
const TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// The new domain
    domain: String,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let cluster = context.cluster()?.clone();
        let controller = context.controller()?;
        let old = cluster.domain().map(str::to_owned).ok_or_else(|| {
            let message = format!(
                "the cluster's domain is not known: its controller is at {}",
                cluster.controller_url
            );
            Failure::new(message).with_hint("add the cluster by its domain first: `flynn cluster add -f …`")
        })?;
        if old == self.domain {
            return Err(Failure::new(format!("the cluster's domain is {old} already")));
        }
        let question = format!("Migrate cluster domain from {old:?} to {:?}?", self.domain);
        if !self.yes && !terminal::confirm(&question)? {
            eprintln!("Nothing was changed.");
            return Ok(());
        }
        let mut events = Follower::open_all(controller, &["domain_migration"]).await?;
        let began = Instant::now();
        let body = json!({ "old_domain": old, "domain": self.domain });
        let migration: DomainMigration = controller.client().put("/domain", &body).await?;
        eprintln!(
            "Migrating cluster domain (this can take up to {} seconds)...",
            TIMEOUT.as_secs()
        );
        let finished = loop {
            if migration.finished_at.is_some() {
                break migration;
            }
            let patience = TIMEOUT.saturating_sub(began.elapsed());
            let next = tokio::time::timeout(patience, events.next())
                .await
                .transpose_timeout()?;
            match next {
                Some(Next::Event(event)) if event.object_id == migration.id.to_string() => {
                    let error = event.data["error"].as_str().unwrap_or_default();
                    if !error.is_empty() {
                        return Err(Failure::new(format!("the domain was not changed: {error}")));
                    }
                    let now = event.data["domain_migration"].clone();
                    if let Ok(now) = serde_json::from_value::<DomainMigration>(now)
                        && now.finished_at.is_some()
                    {
                        break now;
                    }
                }
                Some(_) => {}
                None => {
                    return Err(
                        Failure::new("timed out waiting for the domain migration to complete").with_hint(
                            "the cluster goes on with it; `flynn route` shows when apps have their new names",
                        ),
                    );
                }
            }
        };
        let pin = finished.tls_cert.map(|cert| cert.pin).unwrap_or_default();
        adopt(&cluster, &old, &self.domain, &pin).await?;
        eprintln!("Changed cluster domain from {old:?} to {:?}", self.domain);
        Ok(())
    }
}

/// Routers hear of new names a moment after they are made.
const ROUTED_MAX: std::time::Duration = std::time::Duration::from_secs(3);
const ASK_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

/// Points the configuration at the new names, if they lead to the cluster already. The old ones go on
/// to work.
async fn adopt(cluster: &Cluster, old: &str, new: &str, pin: &str) -> Result<()> {
    let moved = |url: &str| url.replace(&format!(".{old}"), &format!(".{new}"));
    let mut renamed = Cluster {
        controller_url: moved(&cluster.controller_url),
        git_url: moved(&cluster.git_url),
        image_url: moved(&cluster.image_url),
        docker_push_url: moved(&cluster.docker_push_url),
        ..cluster.clone()
    };
    if !pin.is_empty() && !cluster.tls_pin.is_empty() {
        renamed.tls_pin = pin.to_owned();
    }
    let deadline = tokio::time::Instant::now() + ROUTED_MAX;
    let asked = loop {
        match context::connect(&renamed)?.ca_cert().await {
            Err(_) if tokio::time::Instant::now() < deadline => tokio::time::sleep(ASK_AGAIN).await,
            asked => break asked,
        }
    };
    let ca_cert = match asked {
        Ok(ca_cert) => ca_cert,
        Err(error) => {
            eprintln!(
                "The cluster is not reached by its new name yet ({error}); {} goes on to be used. When the name leads \
                 there: flynn cluster add -f -p {pin} {} {new} KEY",
                cluster.controller_url, cluster.name
            );
            return Ok(());
        }
    };
    if !renamed.git_url.is_empty() {
        let path = config::ca_cert_path(&renamed.name)?;
        config::write_private(&path, ca_cert.as_bytes())?;
        let program = std::env::current_exe()
            .map_err(|error| Failure::new(format!("cannot find this program's own path: {error}")))?;
        git::configure_server(&renamed.git_url, &path, &program)?;
    }
    let mut config = Config::load()?;
    config.put(renamed);
    config.save()
}
