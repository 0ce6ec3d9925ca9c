//! The user's terminal: its size, raw mode, and questions.

use std::io::{BufRead, IsTerminal, Write};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::failure::{Failure, Result};

/// Whether a person sits at both ends, so that a job should have a terminal too.
pub fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub columns: u16,
    pub lines: u16,
}

/// The size of the terminal, as far as it is known.
pub fn size() -> Option<Size> {
    let size = tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(Size {
        columns: size.ws_col,
        lines: size.ws_row,
    })
}

/// Raw mode for as long as this lives: each key goes to the job as it is, ctrl-c included.
///
/// Dropping it, also by a panic, gives the terminal back as it was.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    pub fn enter() -> Result<RawMode> {
        let failed =
            |error: rustix::io::Errno| Failure::new(format!("cannot set the terminal to raw mode: {error}"));
        let before = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(RawMode { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // What was written last may still be on its way to the terminal: it needs raw mode.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Asks on standard error until the answer is yes or no.
pub fn confirm(question: &str) -> Result<bool> {
    let mut stdin = std::io::stdin().lock();
    loop {
        eprint!("{question} (yes/no): ");
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        if !stdin.read_line(&mut answer).is_ok_and(|length| length > 0) {
            eprintln!();
            return Err(Failure::new("this needs a yes").with_hint("-y answers it on the command line"));
        }
        match answer.trim().to_ascii_lowercase().as_str() {
            "yes" | "y" => return Ok(true),
            "no" | "n" => return Ok(false),
            _ => eprintln!("Please type 'yes' or 'no'"),
        }
    }
}

/// Asks for a name to be typed, so that nothing is destroyed by a habit of saying yes. `question`
/// says what would be lost.
pub fn confirm_name(question: &str, name: &str) -> Result<bool> {
    eprintln!("{question}");
    eprint!("Type {name} to go on: ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    if !std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .is_ok_and(|length| length > 0)
    {
        eprintln!();
        return Err(Failure::new(format!("this needs the name {name} to be typed"))
            .with_hint("-y goes on without it"));
    }
    Ok(answer.trim() == name)
}

/// Whether there is a person to ask. Verbs that the original carried out without a question ask only
/// then, so that its scripts go on to work.
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}
