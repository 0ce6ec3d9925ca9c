use clap::CommandFactory;
use clap_complete::Shell;

use crate::{cli::Cli, failure::Result, output};

/// Print a shell's completion script
///
/// Print a script that lets a shell complete flynn's commands and options.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn completions bash > ~/.local/share/bash-completion/completions/flynn
  $ flynn completions zsh > ~/.zfunc/_flynn")]
pub struct Args {
    shell: Shell,
}

impl Args {
    pub fn run(self) -> Result<()> {
        let mut script = vec![];
        clap_complete::generate(self.shell, &mut Cli::command(), "flynn", &mut script);
        output::print(&String::from_utf8_lossy(&script));
        Ok(())
    }
}
