use crate::{failure::Result, output};

/// Show flynn version
///
/// Print the version of this program. The cluster may have another.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn version
  v0.1.0")]
pub struct Args {}

impl Args {
    pub fn run(self) -> Result<()> {
        output::print_line(api::VERSION);
        Ok(())
    }
}
