//! The command line as a whole: global options, the list of commands, and what is said about a
//! line that cannot be understood.
//!
//! `-a` and `-c` stand before the command, as some commands have options of these letters;
//! `--app` and `--cluster` may stand anywhere.

use std::{collections::BTreeMap, ffi::OsString};

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};

use crate::{commands, failure::Failure, habits, output::nearest};

#[derive(Debug, Parser)]
#[command(
    name = "flynn",
    about = "Deploy apps to a Flynn cluster and look after them.",
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_version_flag = true,
    after_help = "See 'flynn help <command>' for more information on a specific command."
)]
pub struct Cli {
    /// App, where the git checkout does not tell (or FLYNN_APP)
    #[arg(short = 'a', value_name = "APP")]
    app_first: Option<String>,
    /// Cluster, where it is not the default one (or FLYNN_CLUSTER)
    #[arg(short = 'c', value_name = "CLUSTER")]
    cluster_first: Option<String>,
    /// The same as -a, allowed anywhere
    #[arg(
        long = "app",
        value_name = "APP",
        global = true,
        help_heading = "Global options"
    )]
    app_anywhere: Option<String>,
    /// The same as -c, allowed anywhere
    #[arg(
        long = "cluster",
        value_name = "CLUSTER",
        global = true,
        help_heading = "Global options"
    )]
    cluster_anywhere: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    pub fn app(&self) -> Option<String> {
        self.app_first.clone().or_else(|| self.app_anywhere.clone())
    }

    pub fn cluster(&self) -> Option<String> {
        self.cluster_first
            .clone()
            .or_else(|| self.cluster_anywhere.clone())
    }
}

/// The commands in the order of the help; each one's help is with its arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    Cluster(commands::cluster::Args),
    Create(commands::create::Args),
    Delete(commands::delete::Args),
    Apps(commands::apps::Args),
    Info(commands::info::Args),
    Ps(commands::ps::Args),
    Kill(commands::kill::Args),
    Log(commands::log::Args),
    Scale(commands::scale::Args),
    Run(commands::run::Args),
    Exec(commands::exec::Args),
    Restart(commands::restart::Args),
    Why(commands::why::Args),
    Env(commands::env::Args),
    Limit(commands::limit::Args),
    Meta(commands::meta::Args),
    Link(commands::link::Args),
    Route(commands::route::Args),
    Release(commands::release::Args),
    Deployment(commands::deployment::Args),
    Build(commands::build::Args),
    Docker(commands::docker::Args),
    Image(commands::image::Args),
    Provider(commands::provider::Args),
    Resource(commands::resource::Args),
    Volume(commands::volume::Args),
    Export(commands::export::Args),
    Import(commands::import::Args),
    Remote(commands::remote::Args),
    #[command(hide = true)]
    GitCredentials(commands::git_credentials::Args),
    Completions(commands::completions::Args),
    Man(commands::man::Args),
    Version(commands::version::Args),
}

/// Puts a line into the words that are understood here; see [`habits`].
pub fn in_own_words(arguments: Vec<OsString>) -> Vec<OsString> {
    habits::in_own_words(arguments, |noun| Cli::command().find_subcommand(noun).is_some())
}

/// The help of each command by its name, for programs: `flynn help --json`.
pub fn all_help() -> BTreeMap<String, String> {
    let mut cli = Cli::command();
    cli.build();
    let of = |command: &clap::Command| {
        let help = command.clone().render_long_help().to_string();
        (command.get_name().to_owned(), help)
    };
    cli.get_subcommands()
        .filter(|command| command.get_name() != "help")
        .map(of)
        .collect()
}

/// What is wrong with a command line, in the form of all other errors.
pub fn usage_failure(error: &clap::Error) -> Failure {
    use clap::error::{ContextKind, ContextValue};
    let texts = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => vec![],
    };
    let usage = error
        .get(ContextKind::Usage)
        .map(|usage| usage.to_string())
        .unwrap_or_default();
    if error.kind() == ErrorKind::InvalidSubcommand
        && let Some(name) = texts(ContextKind::InvalidSubcommand).first()
    {
        return unknown_command(name, &nouns_of(&usage));
    }
    let near = [
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedArg,
        ContextKind::SuggestedValue,
    ];
    let near: Vec<String> = near.into_iter().flat_map(texts).collect();
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    // The rest is about what clap would print around it; ours is said by hints.
    let rest = ["\n\n  tip:", "\n\nUsage:", "\n\nFor more information"];
    let end = rest
        .iter()
        .filter_map(|rest| text.find(rest))
        .min()
        .unwrap_or(text.len());
    let mut hints = vec![];
    if !near.is_empty() {
        hints.push(format!("did you mean {}?", near.join(" or ")));
    }
    let usage = usage.trim().trim_start_matches("Usage:").trim();
    if !usage.is_empty() {
        let lines: Vec<&str> = usage.lines().map(str::trim).collect();
        hints.push(format!("usage: {}", lines.join(" or: ")));
    }
    Failure::new(text[..end].trim_end()).with_hint(hints.join("\n"))
}

/// `["route"]` of `Usage: flynn route [OPTIONS] [COMMAND]`: what came before the word that is unknown.
fn nouns_of(usage: &str) -> Vec<String> {
    let words = usage.trim_start_matches("Usage:").split_whitespace().skip(1);
    words
        .take_while(|word| !word.starts_with(['[', '<', '-']))
        .map(str::to_owned)
        .collect()
}

/// What the original had and this does not, for whoever types it by habit.
fn hint_of_the_originals(name: &str) -> Option<&'static str> {
    match name {
        "pg" | "mysql" | "mongodb" | "redis" => Some(
            "the platform brings no databases of its own yet; `flynn provider add` takes one that does, and \
             `flynn run` starts a client with the app's environment",
        ),
        "login" => Some("there are no accounts yet: `flynn cluster add` takes the cluster's key"),
        "install" => Some("`flynn-host` makes clusters; `flynn cluster add` makes one known here"),
        _ => None,
    }
}

fn unknown_command(name: &str, nouns: &[String]) -> Failure {
    let mut command = Cli::command();
    for noun in nouns {
        command = command.find_subcommand(noun).cloned().unwrap_or(command);
    }
    let verbs: Vec<String> = command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set())
        .map(|verb| verb.get_name().to_owned())
        .collect();
    let near = nearest(name, verbs.iter().map(String::as_str));
    let noun = nouns.join(" ");
    if nouns.is_empty()
        && let Some(hint) = hint_of_the_originals(name)
    {
        return Failure::new(format!("{name} is not a flynn command. See 'flynn help'")).with_hint(hint);
    }
    match (nouns, near) {
        ([], Some(near)) => Failure::new(format!("{name} is not a flynn command. See 'flynn help'"))
            .with_hint(format!("did you mean `flynn {near}`?")),
        ([], None) => Failure::new(format!("{name} is not a flynn command. See 'flynn help'"))
            .with_hint("`flynn help` lists the commands"),
        (_, Some(near)) => Failure::new(format!("flynn {noun} has no verb {name}"))
            .with_hint(format!("did you mean `flynn {noun} {near}`?")),
        (_, None) => Failure::new(format!("flynn {noun} has no verb {name}"))
            .with_hint(format!("it has {}", verbs.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_in_its_help() {
        let mut cli = Cli::command();
        cli.build();
        for command in cli
            .get_subcommands()
            .filter(|command| command.get_name() != "help")
        {
            let help = command.clone().render_long_help().to_string();
            assert!(
                help.contains("Examples:\n\n  $ "),
                "{} has no example",
                command.get_name()
            );
            insta::assert_snapshot!(format!("help-{}", command.get_name()), full_help(command));
        }
        insta::assert_snapshot!("help", cli.render_long_help().to_string());
    }

    #[test]
    fn every_verb_has_an_example_too() {
        fn check(name: &str, command: &clap::Command) {
            let verbs: Vec<_> = command
                .get_subcommands()
                .filter(|verb| verb.get_name() != "help")
                .collect();
            for verb in &verbs {
                check(&format!("{name} {}", verb.get_name()), verb);
            }
            if verbs.is_empty() {
                let help = command.clone().render_long_help().to_string();
                assert!(help.contains("Examples:\n\n  "), "{name} has no example");
            }
        }
        let mut cli = Cli::command();
        cli.build();
        check("flynn", &cli);
    }

    /// The help of a command and of all its verbs.
    fn full_help(command: &clap::Command) -> String {
        let mut text = command.clone().render_long_help().to_string();
        for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
            text.push_str(&format!("\n--- {}\n\n{}", verb.get_name(), full_help(verb)));
        }
        text
    }
}
