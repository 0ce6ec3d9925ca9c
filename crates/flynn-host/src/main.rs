//! `flynn-host`: what runs on every machine, and what operators use.
//!
//! The composition root: it reads one configuration, opens what the components need and starts them.
//! Components know each other only by the addresses given to them here.

mod address;
mod backup;
mod cluster;
mod config;
mod daemon_command;
mod debug_info;
mod df;
mod drain;
mod floating;
mod format;
mod host_client;
mod images;
mod keeper;
mod lab;
mod log_sink;
mod operate;
mod restore;
mod router_command;
mod settings;
mod supervise;
mod teardown;
mod tunnel_command;
mod update;
mod update_all;
mod update_taken;
mod volumes;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use config::Config;

/// Runs a host of the cluster, and looks after it.
#[derive(Parser)]
#[command(name = "flynn-host", version = api::VERSION, disable_help_subcommand = true)]
struct Cli {
    /// The host's configuration file
    #[arg(long, global = true, env = "FLYNN_HOST_CONFIG", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the host daemon: controller, jobs, discovery, builds and logs
    Daemon,
    /// Run the router, which goes on serving while the daemon is away
    ///
    /// On SIGHUP it starts anew, from the program and the configuration as they are then, and no
    /// request fails: the new one takes over the sockets before the old one stops.
    Router {
        /// Serve on sockets that come over standard input; what `router` itself starts
        #[arg(long, hide = true)]
        serve: bool,
    },
    /// Run what encrypts traffic between hosts, which goes on while the daemon is away
    Tunnel,
    /// Run daemon, router and tunnel and start them again when they end, where there is no systemd
    Supervise,
    /// List the cluster's hosts
    ///
    /// Example:
    ///   $ flynn-host list
    #[command(verbatim_doc_comment)]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Found a cluster on this host, to which others can be joined
    ///
    /// A daemon that is started on a host without a cluster does the same by itself.
    ///
    /// Example:
    ///   $ flynn-host init
    #[command(verbatim_doc_comment)]
    Init {
        /// The address by which other hosts reach this one, with a port where it is not 1115
        #[arg(long)]
        address: Option<String>,
        /// An address that one living host has at a time, for clients that know only one
        #[arg(long, value_name = "IP/PREFIX")]
        floating: Vec<String>,
    },
    /// Make a token with which one other host can join
    ///
    /// Example:
    ///   $ flynn-host token --ttl 1h
    #[command(verbatim_doc_comment)]
    Token {
        /// How long it may be used: 90s, 30m, 1h, 2d
        #[arg(long, default_value = "1h")]
        ttl: String,
    },
    /// Make this host a member of a cluster; start the daemon afterwards
    ///
    /// Example:
    ///   $ flynn-host join 10.0.0.1 --token flynn-…
    #[command(verbatim_doc_comment)]
    Join {
        /// Any host of the cluster, with a port where it is not 1115
        cluster: String,
        /// What `flynn-host token` printed there
        #[arg(long, env = "FLYNN_TOKEN", hide_env_values = true)]
        token: String,
        /// The address by which other hosts reach this one, with a port where it is not this host's own
        #[arg(long)]
        address: Option<String>,
        /// Floating addresses, as IP/PREFIX@INTERFACE where the interface cannot be found out; the cluster's own else
        #[arg(long, value_name = "IP/PREFIX")]
        floating: Vec<String>,
    },
    /// Let a host vote on the cluster's state
    Promote { host: String },
    /// Let a host follow the cluster's state without a vote
    Demote { host: String },
    /// Remove a host that does not come back
    Remove {
        host: String,
        /// Also while it is up: its jobs are started elsewhere
        #[arg(long)]
        force: bool,
    },
    /// Show how the cluster's state is: who leads, who votes, who is behind
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Go on with this host alone, when most of those who vote are lost for good
    ///
    /// What only the lost hosts knew is lost. They must never be started again with what they have:
    /// there would be two clusters.
    Recover {
        #[arg(long, required = true)]
        i_understand_that_the_other_hosts_must_never_come_back: bool,
    },
    /// List this host's jobs
    Ps {
        /// Show jobs that have ended, too
        #[arg(short, long)]
        all: bool,
        /// Print only ids
        #[arg(short, long)]
        quiet: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the log of a job
    Log {
        /// Follow the log
        #[arg(short, long)]
        follow: bool,
        /// Print only the newest lines
        #[arg(long, value_name = "NUMBER")]
        lines: Option<usize>,
        /// Print what the platform says about the job, too
        #[arg(long)]
        init: bool,
        /// Send the job's standard error to standard error
        #[arg(long)]
        split_stderr: bool,
        /// The job's id, as `flynn-host ps` prints it
        id: String,
    },
    /// Print all that is known of a job
    Inspect {
        /// Leave out the environment, which may hold secrets
        #[arg(long)]
        omit_env: bool,
        /// Leave out the values of these variables
        #[arg(long, value_name = "NAMES", value_delimiter = ',')]
        redact_env: Vec<String>,
        id: String,
    },
    /// Stop jobs
    Stop {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Send a signal to a job
    Signal { id: String, signal: String },
    /// Print the `flynn cluster add` command for this cluster
    #[command(name = "cli-add-command")]
    CliAdd,
    /// Look at the log sinks that this host sends to
    ///
    /// Example:
    ///   $ flynn-host log-sink list
    #[command(name = "log-sink", verbatim_doc_comment)]
    LogSink {
        #[command(subcommand)]
        command: LogSinkCommand,
    },
    /// Look after the volumes of all hosts
    Volume {
        #[command(subcommand)]
        command: volumes::Command,
    },
    /// Print what takes how much of this host's disk
    Df {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Collect what is needed to find out elsewhere what is wrong, in one file
    ///
    /// Versions, configuration, status of the cluster and of this host's jobs, the newest logs, and what the kernel
    /// says. Keys, secret settings and environments are left out, and taken out of logs where they are known.
    ///
    /// Example:
    ///   $ flynn-host collect-debug-info
    #[command(verbatim_doc_comment)]
    CollectDebugInfo {
        /// Create a tarball, as is always done: nothing is uploaded
        #[arg(long)]
        tarball: bool,
        /// Include sensitive environment variables
        #[arg(long)]
        include_env: bool,
        /// Ask other hosts nothing
        #[arg(long)]
        this_host: bool,
        /// Path to the log directory, where there is no systemd
        #[arg(long, value_name = "DIR", default_value = "/var/log")]
        log_dir: PathBuf,
        /// Path to write the tarball to; in the directory for temporary files where it is left out
        #[arg(long, value_name = "PATH")]
        filename: Option<PathBuf>,
    },
    /// Print the version
    Version,
    /// Bring back a cluster from a backup, on a machine where none is
    ///
    /// Apps, releases, routes, certificates, keys, repositories, images and volumes are as they were when
    /// `flynn cluster backup` ran. Start the host afterwards.
    ///
    /// Example:
    ///   $ flynn-host restore flynn-backup.tar
    #[command(verbatim_doc_comment)]
    Restore { file: PathBuf },
    /// Replace the programs of all hosts, one after the other, while everything runs
    ///
    /// The other hosts are sent the programs; the host that leads is the last. Each has to be up again, with the
    /// cluster's state and its jobs, before the next begins. Jobs go on, and no request fails. Where the new
    /// programs do not come up, the ones before come back, on the hosts that have been updated, too.
    ///
    /// Example:
    ///   $ flynn-host update --programs target/release
    #[command(verbatim_doc_comment)]
    Update {
        /// A directory with flynn-host, and flynn-shim and flynn where they change, too
        #[arg(long, value_name = "DIRECTORY", required_unless_present = "previous")]
        programs: Option<PathBuf>,
        /// Only this host, and back to the programs before the last update
        #[arg(long, conflicts_with = "programs")]
        previous: bool,
        /// Only this host
        #[arg(long)]
        here: bool,
        /// How long daemon and router may each take to come up
        #[arg(long, value_name = "SECONDS", default_value_t = 30)]
        timeout: u64,
        /// Where to write how it ended; what a host gives that another updates
        #[arg(long, hide = true, value_name = "FILE")]
        report: Option<PathBuf>,
    },
    /// Stop all jobs of this host and remove its network, as before an uninstallation
    Teardown {
        /// Remove the state, too: apps, images, logs, keys
        #[arg(long)]
        remove_state: bool,
    },
    /// Move a host's jobs elsewhere, before it is switched off
    ///
    /// Returns when they are gone. Each ends when another serves in its place; jobs whose volumes are on the host
    /// stay, and one-off jobs run to their end.
    ///
    /// Example:
    ///   $ flynn-host drain host2
    #[command(verbatim_doc_comment)]
    Drain {
        host: String,
        /// Seconds to wait for jobs to leave
        #[arg(long, default_value_t = 300)]
        timeout: u64,
    },
    /// Let jobs be started on a host again
    Undrain { host: String },
    /// Show or set how many hosts keep each layer, image and repository
    ///
    /// Where there are more copies to be made, hosts make them within seconds. Copies that are too many stay until
    /// nothing needs them.
    ///
    /// Example:
    ///   $ flynn-host copies 3
    #[command(verbatim_doc_comment)]
    Copies { number: Option<u32> },
    /// Show, set or remove the cluster's bucket, in which layers, images and repositories outlive its hosts
    ///
    /// Example:
    ///   $ AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… flynn-host bucket set s3://backups/flynn --region eu-central-1
    ///   $ flynn-host bucket
    #[command(verbatim_doc_comment)]
    Bucket(settings::BucketArgs),
    /// Try a whole cluster on this machine: hosts in namespaces, power cuts, partitions
    Lab(lab::LabArgs),
    /// The first process of a lab's host
    #[command(hide = true)]
    LabInit { inside: String },
    /// Called by git when somebody pushes
    #[command(hide = true)]
    GitHook,
    /// Called by the registry for each layer of an image
    #[command(hide = true)]
    ConvertLayer { limits: String, jail: PathBuf },
}

#[derive(Subcommand)]
enum LogSinkCommand {
    /// Display a list of sinks configured for a host, and how far it is with each
    List {
        /// The host's id; this host where it is left out
        host: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    if let Err(error) = lab::clock::apply() {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    if matches!(cli.command, Command::GitHook) {
        return builder::hook::main();
    }
    if let Command::LabInit { inside } = &cli.command {
        return lab::inside::main(inside);
    }
    if matches!(cli.command, Command::Lab(_)) {
        return run_lab(cli);
    }
    if let Command::ConvertLayer { limits, jail } = &cli.command {
        return registry::convert_layer(limits, jail);
    }
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_lab(cli: Cli) -> ExitCode {
    let Command::Lab(args) = cli.command else {
        unreachable!("only called for labs")
    };
    Config::load(&cli.config)
        .and_then(|config| lab::run(args, config))
        .unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        })
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if matches!(cli.command, Command::Version) {
        println!("{}", api::VERSION);
        return Ok(());
    }
    let config = Config::load(&cli.config)?;
    // Two threads carry a host's control plane; builds and blocking work have threads of their own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Daemon => daemon_command::run(config, &cli.config).await,
            Command::Router { serve: true } => router_command::run(config).await,
            Command::Router { serve: false } => keeper::run(config, &cli.config).await,
            Command::Tunnel => tunnel_command::run(&cli.config).await,
            Command::Supervise => supervise::run(config, &cli.config).await,
            Command::Init { address, floating } => cluster::init(&config, address.as_deref(), floating),
            Command::Token { ttl } => cluster::token(&config, &ttl).await,
            Command::Join {
                cluster,
                token,
                address,
                floating,
            } => cluster::join(&config, &cluster, &token, address.as_deref(), &floating).await,
            Command::Promote { host } => cluster::promote(&config, &host).await,
            Command::Demote { host } => cluster::demote(&config, &host).await,
            Command::Remove { host, force } => cluster::remove(&config, &host, force).await,
            Command::Status { json } => settings::status(&config, json).await,
            Command::Recover { .. } => cluster::recover(&config).await,
            Command::List { json } => operate::list(&config, json).await,
            Command::Ps { all, quiet, json } => operate::ps(&config, all, quiet, json).await,
            Command::Log {
                follow,
                lines,
                init,
                split_stderr,
                id,
            } => operate::log(&config, &id, follow, lines, init, split_stderr).await,
            Command::Inspect {
                omit_env,
                redact_env,
                id,
            } => operate::inspect(&config, &id, omit_env, &redact_env).await,
            Command::Stop { ids } => operate::stop(&config, &ids).await,
            Command::Signal { id, signal } => operate::signal(&config, &id, &signal).await,
            Command::LogSink {
                command: LogSinkCommand::List { host, json },
            } => log_sink::list(&config, host.as_deref(), json).await,
            Command::Volume { command } => volumes::run(&config, command).await,
            Command::Drain { host, timeout } => {
                drain::drain(&config, &host, std::time::Duration::from_secs(timeout)).await
            }
            Command::Bucket(args) => settings::bucket(&config, args).await,
            Command::Copies { number } => settings::copies(&config, number).await,
            Command::Undrain { host } => drain::undrain(&config, &host).await,
            Command::CollectDebugInfo {
                tarball: _,
                include_env,
                this_host,
                log_dir,
                filename,
            } => {
                let wish = debug_info::Wish {
                    include_env,
                    this_host,
                    log_dir,
                    filename,
                };
                debug_info::run(&config, &cli.config, wish).await
            }
            Command::Df { json } => df::run(&config, json),
            Command::CliAdd => operate::cli_add_command(&config),
            Command::Restore { file } => restore::run(&config, &file).await,
            Command::Update {
                programs,
                previous,
                here,
                timeout,
                report,
            } => {
                let patience = std::time::Duration::from_secs(timeout);
                let is_here = here || report.is_some();
                let updated = match programs.filter(|_| !previous) {
                    Some(programs) => update_all::run_or_here(&config, &programs, is_here, patience).await,
                    None => update::run_back(&config, patience).await,
                };
                if let Some(report) = report {
                    let ended = updated
                        .as_ref()
                        .err()
                        .map_or(String::new(), |error| format!("{error:#}"));
                    daemon::files::write_atomic(&report, ended.as_bytes(), 0o600)?;
                }
                updated
            }
            Command::Teardown { remove_state } => teardown::run(&config, remove_state).await,
            Command::Version
            | Command::GitHook
            | Command::Lab(_)
            | Command::LabInit { .. }
            | Command::ConvertLayer { .. } => {
                unreachable!("handled before the configuration is read")
            }
        }
    })
}
