use std::{
    fs,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::CommandFactory;

use crate::{
    cli::Cli,
    failure::{Failure, Result},
    output,
};

/// Show or write manual pages
///
/// Show the manual page of flynn, or of one of its commands. With --dir, write all of them to a
/// directory, from which `man` finds them if it is named man1.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn man route add
  $ flynn man --dir ~/.local/share/man/man1 && man flynn-scale")]
pub struct Args {
    /// Write the pages of all commands to this directory
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
    /// The command whose page is wanted [default: flynn itself]
    command: Vec<String>,
}

impl Args {
    pub fn run(self) -> Result<()> {
        if let Some(directory) = &self.dir {
            return write_all(directory);
        }
        let mut wanted = vec!["flynn"];
        wanted.extend(self.command.iter().map(String::as_str));
        let name = wanted.join("-");
        let pages = pages();
        let Some((_, page)) = pages.iter().find(|(known, _)| *known == name) else {
            return Err(
                Failure::new(format!("there is no command `{}`", wanted.join(" ")))
                    .with_hint("`flynn help` lists the commands"),
            );
        };
        show(page)
    }
}

/// The page of each command and verb, as roff, by the name of its file without the section.
fn pages() -> Vec<(String, String)> {
    let mut pages = vec![];
    let mut cli = Cli::command();
    cli.build();
    collect("flynn", &cli, &mut pages);
    pages
}

fn collect(name: &str, command: &clap::Command, pages: &mut Vec<(String, String)>) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let title = name.replace(' ', "-");
    let titled = command
        .clone()
        .name(title.clone())
        .bin_name(name.to_owned())
        .version(api::VERSION.trim_start_matches('v'));
    let mut page = vec![];
    clap_mangen::Man::new(titled)
        .title(title.to_uppercase())
        .manual("Flynn")
        .source(format!("flynn {}", api::VERSION))
        // The page of a certain version is the same whenever it is made.
        .date(String::new())
        .render(&mut page)
        .expect("writing to memory does not fail");
    pages.push((title, with_examples(&String::from_utf8_lossy(&page))));
    for verb in command.get_subcommands() {
        collect(&format!("{name} {}", verb.get_name()), verb, pages);
    }
}

/// The examples in a section of their own, line by line as they are.
fn with_examples(page: &str) -> String {
    let Some((before, rest)) = page.split_once(".SH EXTRA\nExamples:\n") else {
        return page.to_owned();
    };
    let (examples, after) = match rest.split_once("\n.SH ") {
        Some((examples, after)) => (examples, format!("\n.SH {after}")),
        None => (rest, String::new()),
    };
    format!("{before}.SH EXAMPLES\n.nf{examples}\n.fi{after}")
}

fn write_all(directory: &Path) -> Result<()> {
    let failed = |path: &Path, error: std::io::Error| {
        Failure::new(format!("cannot write {}: {error}", path.display()))
    };
    fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    let pages = pages();
    for (name, page) in &pages {
        let path = directory.join(format!("{name}.1"));
        fs::write(&path, page).map_err(|error| failed(&path, error))?;
    }
    eprintln!("Wrote {} pages to {}.", pages.len(), directory.display());
    Ok(())
}

/// Through `man` for a person; as it is for a program, or where there is no `man`.
fn show(page: &str) -> Result<()> {
    if std::io::stdout().is_terminal()
        && let Ok(mut man) = Command::new("man")
            .args(["-l", "-"])
            .stdin(Stdio::piped())
            .spawn()
    {
        let mut input = man.stdin.take().expect("it was piped");
        let _ = input.write_all(page.as_bytes());
        drop(input);
        if man.wait().is_ok_and(|status| status.success()) {
            return Ok(());
        }
    }
    output::print(page);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_verb_has_a_page_of_its_own() {
        let pages = pages();
        for name in [
            "flynn",
            "flynn-scale",
            "flynn-route-add-http",
            "flynn-cluster-log-sink",
        ] {
            let page = pages.iter().find(|(known, _)| known == name);
            let (_, page) = page.unwrap_or_else(|| panic!("{name} has none"));
            assert!(page.contains(".SH NAME"), "{page}");
            assert!(name == "flynn" || page.contains(".SH EXAMPLES\n.nf\n"), "{page}");
        }
        assert!(pages.iter().all(|(name, _)| !name.contains("help")));
    }
}
