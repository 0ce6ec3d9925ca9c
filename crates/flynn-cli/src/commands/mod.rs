//! One file per command: its arguments with their help, and what it does.

pub mod apps;
pub mod build;
pub mod cluster;
pub mod cluster_backup;
pub mod completions;
pub mod create;
pub mod delete;
pub mod deployment;
pub mod docker;
pub mod env;
pub mod exec;
pub mod export;
pub mod git_credentials;
pub mod image;
pub mod import;
pub mod info;
pub mod kill;
pub mod limit;
pub mod link;
pub mod log;
mod log_sink;
pub mod man;
pub mod meta;
mod migrate_domain;
pub mod provider;
pub mod ps;
pub mod release;
pub mod remote;
pub mod resource;
pub mod restart;
pub mod route;
pub mod run;
pub mod scale;
pub mod version;
pub mod volume;
pub mod why;

use crate::{
    cli::Command,
    context::Context,
    failure::{Failure, Result},
};

/// Carries a command out; gives the exit status.
pub async fn run(command: Command, context: &Context) -> Result<i32> {
    match command {
        Command::Run(args) => return args.run(context).await,
        Command::Exec(args) => return args.run(context).await,
        Command::Cluster(args) => args.run(context).await,
        Command::Create(args) => args.run(context).await,
        Command::Delete(args) => args.run(context).await,
        Command::Apps(args) => args.run(context).await,
        Command::Info(args) => args.run(context).await,
        Command::Ps(args) => args.run(context).await,
        Command::Kill(args) => args.run(context).await,
        Command::Log(args) => args.run(context).await,
        Command::Scale(args) => args.run(context).await,
        Command::Restart(args) => args.run(context).await,
        Command::Env(args) => args.run(context).await,
        Command::Limit(args) => args.run(context).await,
        Command::Meta(args) => args.run(context).await,
        Command::Link(args) => args.run(context).await,
        Command::Route(args) => args.run(context).await,
        Command::Release(args) => args.run(context).await,
        Command::Deployment(args) => args.run(context).await,
        Command::Why(args) => args.run(context).await,
        Command::Provider(args) => args.run(context).await,
        Command::Resource(args) => args.run(context).await,
        Command::Volume(args) => args.run(context).await,
        Command::Export(args) => args.run(context).await,
        Command::Import(args) => args.run(context).await,
        Command::Remote(args) => args.run(context).await,
        Command::Build(args) => args.run(context).await,
        Command::Docker(args) => args.run(context).await,
        Command::Image(args) => args.run(context).await,
        Command::GitCredentials(args) => args.run().await,
        Command::Completions(args) => args.run(),
        Command::Man(args) => args.run(),
        Command::Version(args) => args.run(),
    }?;
    Ok(0)
}

/// `VAR=VALUE` taken apart; the value may be empty and may contain `=`.
fn assignment(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Failure::new(format!("{text:?} sets nothing")).with_hint("write it as NAME=VALUE")),
    }
}
