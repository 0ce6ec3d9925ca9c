use std::fs;

use clap::Subcommand;
use serde_json::json;

use super::{cluster_backup, log_sink, migrate_domain};
use crate::{
    authority,
    config::{self, Cluster, Config},
    context::{self, Context},
    failure::{Failure, Result},
    git,
    output::{self, row},
};

/// Manage clusters
///
/// Manage the clusters in ~/.flynnrc (or the file that FLYNNRC names). Without a verb, list them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn cluster add -p KGCENkp53YF5OvOKkZIry71+czFRkSw2ZdMszZ/0ljs= default flynn.example.com e09dc5301d72be75
  Cluster \"default\" added and set as default.

  $ flynn cluster
  NAME     CONTROLLER URL                        GIT URL
  default  https://controller.flynn.example.com  https://git.flynn.example.com  (default)")]
pub struct Args {
    /// Print the clusters as JSON, without their keys
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Add a cluster to the configuration file, and to git's settings
    #[command(after_help = "Examples:

  $ flynn cluster add -p KGCENkp53YF5OvOKkZIry71+czFRkSw2ZdMszZ/0ljs= default flynn.example.com e09dc5301d72be75
  Cluster \"default\" added and set as default.

  A cluster on another port than 443:
  $ flynn cluster add -p KGCENkp53YF5OvOKkZIry71+czFRkSw2ZdMszZ/0ljs= test flynn.localhost:8443 e09dc5301d72be75")]
    Add(Add),
    /// Remove a cluster from the configuration file, and from git's settings
    #[command(after_help = "Examples:

  $ flynn cluster remove test
  Cluster \"test\" removed.")]
    Remove { name: String },
    /// Print the default cluster, or set it
    #[command(after_help = "Examples:

  $ flynn cluster default test
  \"test\" is now the default cluster.")]
    Default { name: Option<String> },
    /// Give the cluster, and every app in it, names below another domain
    ///
    /// New certificates are made, and routes APP.DOMAIN are added; the old names go on to work. The
    /// configuration file follows.
    #[command(after_help = "Examples:

  $ flynn cluster migrate-domain new.example.com
  Migrate cluster domain from \"example.com\" to \"new.example.com\"? (yes/no): yes
  Migrating cluster domain (this can take up to 120 seconds)...
  Changed cluster domain from \"example.com\" to \"new.example.com\"")]
    MigrateDomain(migrate_domain::Args),
    /// Write the cluster's state and images to one file
    ///
    /// `flynn-host` makes a cluster of it again, on an empty machine.
    #[command(after_help = "Examples:

  $ flynn cluster backup --file backup.tar
  Creating cluster backup...
  Backup complete (1843200 bytes).")]
    Backup(cluster_backup::Args),
    /// Manage where the log lines of all apps are sent
    ///
    /// Manage log sinks: servers that get the lines of all apps, besides what is kept here. Without a
    /// verb, list them.
    #[command(after_help = "Examples:

  $ flynn cluster log-sink add syslog syslog+tls://rsyslog.host:514/
  Created sink 2e02b087-6e1a-4fb7-ac5d-44548c1701b9.

  $ flynn cluster log-sink
  ID                                    KIND    CONFIG
  2e02b087-6e1a-4fb7-ac5d-44548c1701b9  syslog  {\"url\":\"syslog+tls://rsyslog.host:514/\",\"format\":\"rfc6587\"}")]
    LogSink(log_sink::Args),
}

#[derive(Debug, clap::Args)]
struct Add {
    /// Replace a cluster of this name
    #[arg(short, long)]
    force: bool,
    /// Make it the default cluster
    #[arg(short, long)]
    default: bool,
    /// Address of the git server [default: https://git.DOMAIN]
    #[arg(long, value_name = "URL", conflicts_with = "no_git")]
    git_url: Option<String>,
    /// Leave git's settings alone
    #[arg(long)]
    no_git: bool,
    /// Address of the image server [default: https://images.DOMAIN]
    #[arg(long, value_name = "URL")]
    image_url: Option<String>,
    /// Address of the Docker registry, as older versions had it
    #[arg(long, value_name = "URL", hide = true)]
    docker_push_url: Option<String>,
    /// Set Docker up, as older versions could; images are pushed without that
    #[arg(long, hide = true)]
    docker: bool,
    /// Address of the controller [default: https://controller.DOMAIN]
    #[arg(long, value_name = "URL")]
    controller_url: Option<String>,
    /// SHA-256 of the cluster's TLS certificate, in base64
    #[arg(short = 'p', long, value_name = "PIN")]
    tls_pin: Option<String>,
    /// What the cluster is to be called here
    name: String,
    /// The cluster's domain, with its HTTPS port where that is not 443
    domain: String,
    /// The cluster's key
    key: String,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        match self.verb {
            None => list(self.json),
            Some(Verb::Add(add)) => add.run().await,
            Some(Verb::Remove { name }) => remove(&name),
            Some(Verb::Default { name: None }) => print_default(),
            Some(Verb::Default { name: Some(name) }) => set_default(&name),
            Some(Verb::MigrateDomain(args)) => args.run(context).await,
            Some(Verb::Backup(args)) => args.run(context).await,
            Some(Verb::LogSink(args)) => args.run(context).await,
        }
    }
}

fn list(as_json: bool) -> Result<()> {
    let config = Config::load()?;
    if as_json {
        let shown = |cluster: &Cluster| {
            json!({
                "name": cluster.name,
                "controller_url": cluster.controller_url,
                "git_url": cluster.git_url,
                "image_url": cluster.image_url,
                "tls_pin": cluster.tls_pin,
                "default": cluster.name == config.default,
            })
        };
        output::print_json(&config.clusters.iter().map(shown).collect::<Vec<_>>());
        return Ok(());
    }
    let mut rows = vec![row(["NAME", "CONTROLLER URL", "GIT URL", "IMAGE URL"])];
    for cluster in &config.clusters {
        let mut cells = row([
            &cluster.name,
            &cluster.controller_url,
            &cluster.git_url,
            &cluster.image_url,
        ]);
        if cluster.name == config.default {
            cells.push("(default)".into());
        }
        rows.push(cells);
    }
    output::print_table(&rows);
    Ok(())
}

fn known<'a>(config: &'a Config, name: &str) -> Result<&'a Cluster> {
    config.cluster(name).ok_or_else(|| {
        Failure::new(format!("cluster \"{name}\" not found")).with_hint("`flynn cluster` lists them")
    })
}

fn print_default() -> Result<()> {
    let config = Config::load()?;
    if config.default.is_empty() {
        return Err(
            Failure::new("no default cluster is set").with_hint("set one: `flynn cluster default NAME`")
        );
    }
    let cluster = known(&config, &config.default)?;
    output::print_table(&[
        row(["NAME", "URL"]),
        row([&cluster.name, &cluster.controller_url, "(default)"]),
    ]);
    Ok(())
}

fn set_default(name: &str) -> Result<()> {
    let mut config = Config::load()?;
    known(&config, name)?;
    config.set_default(name);
    config.save()?;
    eprintln!("\"{name}\" is now the default cluster.");
    Ok(())
}

fn remove(name: &str) -> Result<()> {
    let mut config = Config::load()?;
    let cluster = known(&config, name)?.clone();
    let was_default = config.default == name;
    config.remove(name);
    config.save()?;
    if !cluster.git_url.is_empty()
        && !config
            .clusters
            .iter()
            .any(|other| other.git_url == cluster.git_url)
    {
        git::forget_server(&cluster.git_url);
    }
    let _ = fs::remove_file(config::ca_cert_path(name)?);
    match was_default {
        true => eprintln!("Cluster \"{name}\" removed and default cluster unset."),
        false => eprintln!("Cluster \"{name}\" removed."),
    }
    Ok(())
}

impl Add {
    async fn run(self) -> Result<()> {
        if self.docker {
            eprintln!("--docker does nothing any more.");
        }
        check_name(&self.name)?;
        check_domain(&self.domain)?;
        let mut config = Config::load()?;
        if config.cluster(&self.name).is_some() && !self.force {
            return Err(Failure::new(format!("cluster \"{}\" already exists", self.name))
                .with_hint("-f replaces it; another name keeps both"));
        }
        let of_domain = |part: &str| format!("https://{part}.{}", self.domain);
        let cluster = Cluster {
            name: self.name.clone(),
            key: self.key.clone(),
            tls_pin: self.tls_pin.clone().unwrap_or_default(),
            controller_url: self
                .controller_url
                .clone()
                .unwrap_or_else(|| of_domain("controller")),
            git_url: if self.no_git {
                String::new()
            } else {
                self.git_url.clone().unwrap_or_else(|| of_domain("git"))
            },
            image_url: self.image_url.clone().unwrap_or_else(|| of_domain("images")),
            docker_push_url: self.docker_push_url.clone().unwrap_or_default(),
        };
        // By what is given here alone: a file of an authority may be of another cluster that had this name.
        let controller = context::connect_trusting(&cluster, authority::given(&cluster))?;
        let ca_cert = controller.ca_cert().await?;
        // The authority is given to anybody; a list shows whether the key is the right one.
        controller
            .apps()
            .await
            .map_err(|error| match Failure::from(error) {
                failure if failure.message.contains("key") || failure.message.contains("unauthorized") => {
                    Failure::new(format!(
                        "the cluster at {} does not accept this key",
                        cluster.controller_url
                    ))
                    .with_hint(
                        "copy the key from where the cluster was set up; it is printed there with its pin",
                    )
                }
                failure => failure,
            })?;

        let path = config::ca_cert_path(&self.name)?;
        config::write_private(&path, ca_cert.as_bytes())?;
        if !self.no_git {
            let program = std::env::current_exe()
                .map_err(|error| Failure::new(format!("cannot find this program's own path: {error}")))?;
            git::configure_server(&cluster.git_url, &path, &program)?;
        }
        let becomes_default = self.default || config.default.is_empty() || config.default == self.name;
        config.put(cluster);
        if becomes_default {
            config.set_default(&self.name);
        }
        config.save()?;
        match becomes_default {
            true => eprintln!("Cluster \"{}\" added and set as default.", self.name),
            false => eprintln!("Cluster \"{}\" added.", self.name),
        }
        Ok(())
    }
}

/// The name becomes the name of a file.
fn check_name(name: &str) -> Result<()> {
    let fits = !name.is_empty()
        && !name.starts_with(['.', '-'])
        && name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c));
    if fits {
        return Ok(());
    }
    Err(Failure::new(format!("{name:?} cannot be the name of a cluster"))
        .with_hint("use letters, digits, dashes, dots and underscores"))
}

fn check_domain(domain: &str) -> Result<()> {
    let (host, port) = match domain.split_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().is_ok_and(|port| port > 0)),
        None => (domain, true),
    };
    let fits = !host.is_empty()
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
    if fits && port {
        return Ok(());
    }
    Err(Failure::new(format!("{domain:?} is no domain"))
        .with_hint("give the cluster's domain, such as flynn.example.com or flynn.localhost:8443"))
}
