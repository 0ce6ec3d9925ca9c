//! The command line as a whole: global options, the list of commands, and what is said about a
//! line that cannot be understood.
//!
//! `-a` and `-c` stand before the command, as some commands have options of these letters;
//! `--app` and `--cluster` may stand anywhere.

use std::ffi::OsString;

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};

use crate::{commands, failure::Failure, output::nearest};

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
    Env(commands::env::Args),
    Limit(commands::limit::Args),
    Meta(commands::meta::Args),
    Route(commands::route::Args),
    Release(commands::release::Args),
    Deployment(commands::deployment::Args),
    Remote(commands::remote::Args),
    #[command(hide = true)]
    GitCredentials(commands::git_credentials::Args),
    Completions(commands::completions::Args),
    Version(commands::version::Args),
}

/// Takes `noun:verb` apart, so that `flynn route:add http x` is `flynn route add http x`.
pub fn split_verb(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let takes_value = ["-a", "-c", "--app", "--cluster"];
    let mut at = 1;
    while let Some(argument) = arguments.get(at).and_then(|argument| argument.to_str()) {
        if takes_value.contains(&argument) {
            at += 2;
        } else if argument.starts_with('-') {
            at += 1;
        } else {
            let parts: Vec<OsString> = argument.split(':').map(OsString::from).collect();
            let known = parts[0]
                .to_str()
                .is_some_and(|noun| Cli::command().find_subcommand(noun).is_some());
            if known && parts.len() > 1 {
                arguments.splice(at..=at, parts);
            }
            break;
        }
    }
    arguments
}

/// What is wrong with a command line, in the form of all other errors.
pub fn usage_failure(error: &clap::Error) -> Failure {
    use clap::error::{ContextKind, ContextValue};
    if error.kind() == ErrorKind::InvalidSubcommand
        && let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand)
    {
        let command = Cli::command();
        let names: Vec<String> = command
            .get_subcommands()
            .map(|c| c.get_name().to_owned())
            .collect();
        // Only the first noun is looked up in the list of commands; a wrong verb has its own usage.
        if error
            .get(ContextKind::Usage)
            .is_some_and(|usage| !usage.to_string().contains("flynn [OPTIONS] <"))
        {
            return rendered(error);
        }
        let failure = Failure::new(format!("{name} is not a flynn command. See 'flynn help'"));
        return match nearest(name, names.iter().map(String::as_str)) {
            Some(near) => failure.with_hint(format!("did you mean `flynn {near}`?")),
            None => failure,
        };
    }
    rendered(error)
}

fn rendered(error: &clap::Error) -> Failure {
    let text = error.to_string();
    Failure::new(text.strip_prefix("error: ").unwrap_or(&text).trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> String {
        let arguments = line.split(' ').map(OsString::from).collect();
        split_verb(arguments)
            .iter()
            .map(|part| part.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_colon_between_noun_and_verb_is_a_space() {
        assert_eq!(
            split("flynn -a x route:add http a:b"),
            "flynn -a x route add http a:b"
        );
        assert_eq!(
            split("flynn --app=x release:rollback"),
            "flynn --app=x release rollback"
        );
        assert_eq!(split("flynn run echo env:set"), "flynn run echo env:set");
        assert_eq!(split("flynn nosuch:verb"), "flynn nosuch:verb");
    }

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

    /// The help of a command and of all its verbs.
    fn full_help(command: &clap::Command) -> String {
        let mut text = command.clone().render_long_help().to_string();
        for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
            text.push_str(&format!("\n--- {}\n\n{}", verb.get_name(), full_help(verb)));
        }
        text
    }
}
