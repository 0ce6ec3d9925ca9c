//! git's pre-receive hook: a few lines that carry a push to the builder and its answer back.
//!
//! ```text
//!   git receive-pack ──runs──▶ hook (this, a process) ──unix socket──▶ builder
//!        ◀── stdout, as "remote: ..." ──  ◀── "> line" ... "= status" ──
//! ```
//!
//! The socket belongs to root, and so does everything that talks over it. The hook's end is the
//! pusher's end: when the connection breaks before `=`, nobody waits for the build any more.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    process::ExitCode,
};

use serde::{Deserialize, Serialize};

/// Environment of the hook: which push it belongs to, and where the builder listens.
pub const PUSH: &str = "FLYNN_PUSH";
pub const SOCKET: &str = "FLYNN_PUSH_SOCKET";

/// Where git keeps the objects of a push until it is accepted; `git` needs them to see these objects.
const QUARANTINE: [&str; 4] = [
    "GIT_QUARANTINE_PATH",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_SHALLOW_FILE",
];

/// Longest question that the builder reads.
pub const QUESTION_BYTES_MAX: usize = 16 << 20;

/// What the hook asks, as one line of JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Question {
    pub push: String,
    /// The hook's input.
    pub refs: String,
    /// Where the pushed objects are.
    pub quarantine: BTreeMap<String, String>,
}

pub const TEXT: u8 = b'>';
pub const STATUS: u8 = b'=';

/// Runs as the hook; the answer's status is the process's.
pub fn main() -> ExitCode {
    match ask() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            println!(" !     The push could not be handed on: {error}");
            println!(" !     The platform may be restarting; push again in a moment.");
            ExitCode::FAILURE
        }
    }
}

fn ask() -> std::io::Result<u8> {
    let variable =
        |name: &str| std::env::var(name).map_err(|_| std::io::Error::other(format!("{name} is not set")));
    let mut refs = Vec::new();
    std::io::stdin().lock().read_to_end(&mut refs)?;
    let question = Question {
        push: variable(PUSH)?,
        refs: String::from_utf8_lossy(&refs).into_owned(),
        quarantine: QUARANTINE
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
            .collect(),
    };
    let mut connection = UnixStream::connect(variable(SOCKET)?)?;
    let mut line = serde_json::to_vec(&question)?;
    line.push(b'\n');
    connection.write_all(&line)?;
    relay(BufReader::new(connection), std::io::stdout().lock())
}

/// Passes text on, line by line, until the status comes.
fn relay(mut answer: impl BufRead, mut out: impl Write) -> std::io::Result<u8> {
    let mut line = Vec::new();
    loop {
        line.clear();
        answer.read_until(b'\n', &mut line)?;
        match line.split_first() {
            Some((&TEXT, text)) => {
                out.write_all(text)?;
                out.flush()?;
            }
            Some((&STATUS, status)) => {
                let status = String::from_utf8_lossy(status);
                return status.trim().parse().map_err(std::io::Error::other);
            }
            Some(_) => return Err(std::io::Error::other("the answer cannot be understood")),
            None => return Err(std::io::Error::other("the connection broke")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_passed_on_until_the_status_comes() {
        let mut out = Vec::new();
        let status = relay(&b">-----> Building\n>\n>done\n=1\n>never\n"[..], &mut out).unwrap();
        assert_eq!(
            (status, String::from_utf8(out).unwrap().as_str()),
            (1, "-----> Building\n\ndone\n")
        );
        assert!(relay(&b">half"[..], &mut Vec::new()).is_err());
        assert!(relay(&b"?\n"[..], &mut Vec::new()).is_err());
    }
}
