//! `flynn`: what developers use to deploy, scale and look after their apps.
//!
//! A command is a file in `commands`: its arguments with their help, and what it does with them.
//! Nothing is decided here that the controller could decide: a command asks, waits for the
//! controller's events, and prints. Answers that a program may read go to standard output;
//! confirmations, progress and errors go to standard error.

mod archive;
mod attach;
mod authority;
mod cli;
mod commands;
mod config;
mod context;
mod deploy;
mod dry_run;
mod events;
mod failure;
mod git;
mod habits;
mod image_archive;
mod images;
mod output;
mod terminal;
mod why;

use clap::{CommandFactory, FromArgMatches};

use crate::{cli::Cli, context::Context, failure::Failure};

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => exit_with(&Failure::new(format!(
            "the asynchronous runtime cannot start: {error}"
        ))),
    };
    let status = match runtime.block_on(run()) {
        Ok(status) => status,
        Err(failure) => exit_with(&failure),
    };
    // A thread may still be waiting for a line on standard input: nobody needs to wait for it.
    std::process::exit(status);
}

fn exit_with(failure: &Failure) -> ! {
    eprint!("{}", failure.render());
    std::process::exit(1);
}

async fn run() -> Result<i32, Failure> {
    let arguments = cli::in_own_words(std::env::args_os().collect());
    if arguments.iter().skip(1).eq(["help", "--json"]) {
        output::print_json(&cli::all_help());
        return Ok(0);
    }
    let matches = match Cli::command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() => return Err(cli::usage_failure(&error)),
        Err(help) => {
            output::print(&help.to_string());
            return Ok(0);
        }
    };
    let cli = Cli::from_arg_matches(&matches).map_err(|error| cli::usage_failure(&error))?;
    let context = Context::new(cli.app(), cli.cluster());
    match commands::run(cli.command, &context).await {
        Ok(status) => {
            context.keep_authority_fresh().await;
            Ok(status)
        }
        Err(failure) => Err(context.explain(failure).await),
    }
}
