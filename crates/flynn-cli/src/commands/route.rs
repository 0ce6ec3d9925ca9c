use std::io::Read;

use api::dry_run::Trial;
use api::wire::{CertificateView, NewRoute, RouteView};
use clap::Subcommand;
use types::RouteKind;

use crate::{
    context::Context,
    dry_run,
    failure::{Failure, Result},
    output::{self, row},
};

/// Manage routes
///
/// Manage the domains, paths and ports by which an app is reached. Without a verb, list them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn route add http example.com
  http/5ababd60-3c0d-4f5b-8b6f-6c0dd3aa55d1

  $ flynn route
  ROUTE             SERVICE   ID                                         STICKY  LEADER  PATH
  http:example.com  shop-web  http/5ababd60-3c0d-4f5b-8b6f-6c0dd3aa55d1  false   false   /")]
pub struct Args {
    /// Print the routes, or a dry run's answer, as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Add a route to the app
    #[command(subcommand)]
    Add(Add),
    /// Change a route
    Update(Update),
    /// Remove a route
    #[command(after_help = "Examples:

  $ flynn route remove http/5ababd60-3c0d-4f5b-8b6f-6c0dd3aa55d1
  Route http/5ababd60-3c0d-4f5b-8b6f-6c0dd3aa55d1 removed.")]
    Remove {
        #[command(flatten)]
        dry_run: dry_run::Options,
        /// Id of the route, as `flynn route` prints it
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum Add {
    /// Add an HTTP route: a domain, perhaps with a path
    Http(AddHttp),
    /// Add a TCP route: a port
    Tcp(AddTcp),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn route add http example.com
  $ flynn route add http example.com/path/
  $ flynn route add http '*.example.com'
  $ flynn route add http -c cert.pem -k key.pem secure.example.com")]
struct AddHttp {
    #[command(flatten)]
    dry_run: dry_run::Options,
    /// Service to route to [default: APP-web]
    #[arg(short, long)]
    service: Option<String>,
    /// Further port to accept traffic on
    #[arg(short, long, default_value_t = 0, hide_default_value = true)]
    port: u16,
    #[command(flatten)]
    certificate: Certificate,
    /// Send a client to the same job each time, by a cookie
    #[arg(long)]
    sticky: bool,
    /// Send requests to the service's leader only
    #[arg(long)]
    leader: bool,
    /// Send requests to any of the service's instances, as without this option
    #[arg(long, hide = true, overrides_with = "leader")]
    no_leader: bool,
    /// Do not wait for requests in flight when a job is stopped
    #[arg(long)]
    no_drain_backends: bool,
    /// Close the connection to the job after each request
    #[arg(long)]
    disable_keep_alives: bool,
    /// Domain, or domain and path
    domain: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn route add tcp
  tcp/a16b13e8-4177-4dbf-afab-3b5c3432f216 listening on port 3000")]
struct AddTcp {
    #[command(flatten)]
    dry_run: dry_run::Options,
    /// Service to route to [default: APP-web]
    #[arg(short, long)]
    service: Option<String>,
    /// Port to accept traffic on [default: the next free one]
    #[arg(short, long, default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// Send connections to the service's leader only
    #[arg(long)]
    leader: bool,
    /// Do not wait for connections to end when a job is stopped
    #[arg(long)]
    no_drain_backends: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn route update http/5ababd60-3c0d-4f5b-8b6f-6c0dd3aa55d1 --sticky
  updated http/5ababd60-3c0d-4f5b-8b6f-6c0dd3aa55d1")]
struct Update {
    /// Id of the route, as `flynn route` prints it
    id: String,
    /// Service to route to
    #[arg(short, long)]
    service: Option<String>,
    #[command(flatten)]
    certificate: Certificate,
    /// Send a client to the same job each time, by a cookie
    #[arg(long, overrides_with = "no_sticky")]
    sticky: bool,
    /// Send a client to any job
    #[arg(long)]
    no_sticky: bool,
    /// Send requests to the service's leader only
    #[arg(long, overrides_with = "no_leader")]
    leader: bool,
    /// Send requests to any of the service's instances
    #[arg(long)]
    no_leader: bool,
    /// Close the connection to the job after each request
    #[arg(long, overrides_with = "enable_keep_alives")]
    disable_keep_alives: bool,
    /// Keep connections to jobs open
    #[arg(long)]
    enable_keep_alives: bool,
}

#[derive(Debug, clap::Args)]
struct Certificate {
    /// File with the TLS certificate, PEM, - for standard input
    #[arg(short = 'c', long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<String>,
    /// File with the certificate's private key, PEM, - for standard input
    #[arg(short = 'k', long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<String>,
}

impl Certificate {
    fn read(&self) -> Result<Option<CertificateView>> {
        let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return Ok(None);
        };
        if cert == "-" && key == "-" {
            // Both in one: servers tell certificates from keys by their PEM labels.
            let both = read_pem("-")?;
            return Ok(Some(CertificateView {
                cert: both.clone(),
                key: both,
                ..CertificateView::default()
            }));
        }
        Ok(Some(CertificateView {
            cert: read_pem(cert)?,
            key: read_pem(key)?,
            ..CertificateView::default()
        }))
    }
}

fn read_pem(file: &str) -> Result<String> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin().read_to_string(&mut text).map(|_| ()),
        _ => std::fs::read_to_string(file).map(|content| text = content),
    };
    read.map_err(|error| Failure::new(format!("cannot read {file}: {error}")))?;
    if !text.contains("-----BEGIN ") {
        return Err(
            Failure::new(format!("{file} is no PEM file")).with_hint("it should begin with -----BEGIN")
        );
    }
    Ok(text)
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        match self.verb {
            None => list(context, self.json).await,
            Some(Verb::Add(Add::Http(add))) => add.run(context, self.json).await,
            Some(Verb::Add(Add::Tcp(add))) => add.run(context, self.json).await,
            Some(Verb::Update(update)) => update.run(context).await,
            Some(Verb::Remove { dry_run, id }) => {
                check_id(&id)?;
                if dry_run.dry_run {
                    let (kind, uuid) = id.split_once('/').expect("it was checked");
                    let (kind, id) = (kind.to_owned(), uuid.to_owned());
                    let trial = Trial::RemoveRoute { kind, id };
                    return dry_run::run(context.controller()?, context.app()?, &trial, self.json).await;
                }
                context
                    .controller()?
                    .delete_route(context.app()?, &id)
                    .await
                    .map_err(|error| not_found(&id, error))?;
                output::print_line(&format!("Route {id} removed."));
                Ok(())
            }
        }
    }
}

/// The id becomes part of a path.
fn check_id(id: &str) -> Result<()> {
    let fits = id
        .split_once('/')
        .is_some_and(|(kind, id)| matches!(kind, "http" | "tcp") && id.parse::<types::RouteId>().is_ok());
    match fits {
        true => Ok(()),
        false => Err(Failure::new(format!("{id:?} is no id of a route"))
            .with_hint("ids are http/UUID or tcp/UUID; `flynn route` lists them")),
    }
}

fn not_found(id: &str, error: api::ClientError) -> Failure {
    if !error.is_not_found() {
        return error.into();
    }
    let failure =
        Failure::new(format!("route {id} not found")).with_hint("`flynn route` lists the app's routes");
    Failure {
        is_not_found: true,
        ..failure
    }
}

async fn list(context: &Context, as_json: bool) -> Result<()> {
    let routes = context.controller()?.app_routes(context.app()?).await?;
    if as_json {
        output::print_json(&routes);
        return Ok(());
    }
    let mut rows = vec![row(["ROUTE", "SERVICE", "ID", "STICKY", "LEADER", "PATH"])];
    rows.extend(routes.iter().map(cells));
    output::print_table(&rows);
    Ok(())
}

fn cells(view: &RouteView) -> Vec<String> {
    let route = &view.route;
    let (name, sticky, path) = match route.kind {
        RouteKind::Tcp => (format!("tcp:{}", route.port), String::new(), ""),
        RouteKind::Http => {
            let has_certificate = view.certificate.is_some() || route.certificate_id.is_some();
            let scheme = if has_certificate { "https" } else { "http" };
            let port = if route.port == 0 {
                String::new()
            } else {
                format!(":{}", route.port)
            };
            (
                format!("{scheme}:{}{port}", route.domain),
                route.sticky.to_string(),
                route.path.as_str(),
            )
        }
    };
    row([
        &name,
        &route.service,
        &route.formatted_id(),
        &sticky,
        &route.leader.to_string(),
        path,
    ])
}

/// Routes lead to the app's web processes unless another service is named.
async fn service(context: &Context, given: Option<String>) -> Result<String> {
    match given {
        Some(service) => Ok(service),
        None => Ok(format!("{}-web", context.app_row().await?.name)),
    }
}

impl AddHttp {
    async fn run(self, context: &Context, as_json: bool) -> Result<()> {
        let (domain, path) = match self.domain.split_once('/') {
            Some((domain, path)) => (domain.to_owned(), format!("/{path}")),
            None => (self.domain.clone(), "/".to_owned()),
        };
        if domain.ends_with(':') || domain.is_empty() {
            return Err(Failure::new(format!("{:?} is no domain", self.domain))
                .with_hint("give the domain without http://, such as example.com or example.com/path/"));
        }
        let route = NewRoute {
            kind: Some(RouteKind::Http),
            service: service(context, self.service).await?,
            port: self.port,
            leader: self.leader,
            domain,
            path,
            certificate: self.certificate.read()?,
            sticky: self.sticky,
            drain_backends: !self.no_drain_backends,
            disable_keep_alives: self.disable_keep_alives,
            ..NewRoute::default()
        };
        if self.dry_run.dry_run {
            let trial = Trial::AddRoute { route };
            return dry_run::run(context.controller()?, context.app()?, &trial, as_json).await;
        }
        let view = context.controller()?.create_route(context.app()?, &route).await?;
        output::print_line(&view.route.formatted_id());
        Ok(())
    }
}

impl AddTcp {
    async fn run(self, context: &Context, as_json: bool) -> Result<()> {
        let route = NewRoute {
            kind: Some(RouteKind::Tcp),
            service: service(context, self.service).await?,
            port: self.port,
            leader: self.leader,
            drain_backends: !self.no_drain_backends,
            ..NewRoute::default()
        };
        if self.dry_run.dry_run {
            let trial = Trial::AddRoute { route };
            return dry_run::run(context.controller()?, context.app()?, &trial, as_json).await;
        }
        let view = context.controller()?.create_route(context.app()?, &route).await?;
        output::print_line(&format!(
            "{} listening on port {}",
            view.route.formatted_id(),
            view.route.port
        ));
        Ok(())
    }
}

impl Update {
    async fn run(self, context: &Context) -> Result<()> {
        let Update { id, .. } = &self;
        check_id(id)?;
        let (controller, app) = (context.controller()?, context.app()?);
        let view = controller
            .route(app, id)
            .await
            .map_err(|error| not_found(id, error))?;
        let choose = |yes: bool, no: bool, before: bool| (yes || before) && !no;
        let before = view.route;
        let is_http = before.kind == RouteKind::Http;
        if !is_http && (self.sticky || self.disable_keep_alives || self.certificate.tls_cert.is_some()) {
            return Err(Failure::new(
                "a TCP route has no certificate, no cookies and no keep-alive",
            ));
        }
        let route = NewRoute {
            kind: Some(before.kind),
            service: self.service.clone().unwrap_or(before.service),
            port: before.port,
            leader: choose(self.leader, self.no_leader, before.leader),
            domain: before.domain,
            path: before.path,
            // A controller that leaves the private key out of its answers keeps the certificate; one
            // that gives it takes a route without a certificate as one that is to lose it.
            certificate: self
                .certificate
                .read()?
                .or(view.certificate.filter(|certificate| !certificate.key.is_empty())),
            sticky: choose(self.sticky, self.no_sticky, before.sticky),
            drain_backends: before.drain_backends,
            disable_keep_alives: choose(
                self.disable_keep_alives,
                self.enable_keep_alives,
                before.disable_keep_alives,
            ),
            ..NewRoute::default()
        };
        let view = controller.update_route(app, id, &route).await?;
        output::print_line(&format!("updated {}", view.route.formatted_id()));
        Ok(())
    }
}
