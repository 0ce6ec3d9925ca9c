//! A place of its own for one test: home, configuration, git settings, a directory to stand in.
//! Nothing of the machine's own settings is read or written.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::fake::{Fake, KEY};

pub struct Bench {
    home: tempfile::TempDir,
    pub directory: PathBuf,
}

impl Bench {
    /// Without any cluster.
    pub fn empty() -> Bench {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("work");
        fs::create_dir(&directory).unwrap();
        Bench { home, directory }
    }

    /// With `fake` as the default cluster.
    pub fn of(fake: &Fake) -> Bench {
        let bench = Bench::empty();
        let url = fake.url();
        bench.write_config(&format!(
            "default = \"default\"\n\n[[cluster]]\nName = \"default\"\nKey = \"{KEY}\"\n\
             ControllerURL = \"{url}\"\nGitURL = \"https://git.flynn.test\"\n\
             ImageURL = \"https://images.flynn.test\"\n"
        ));
        bench
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn write_config(&self, text: &str) {
        fs::write(self.home.path().join("flynnrc"), text).unwrap();
    }

    pub fn config(&self) -> String {
        fs::read_to_string(self.home.path().join("flynnrc")).unwrap()
    }

    /// A program with this home.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.directory)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.home.path())
            .env("FLYNNRC", self.home.path().join("flynnrc"))
            .env("GIT_CONFIG_GLOBAL", self.home.path().join("gitconfig"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CEILING_DIRECTORIES", self.home.path())
            .stdin(Stdio::null());
        command
    }

    pub fn flynn(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_flynn"));
        command.args(arguments);
        command
    }

    pub fn git(&self, arguments: &[&str]) -> String {
        let output = self.command("git").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs lines such as `flynn -a x apps` and gives what a terminal would show.
    pub fn transcript(&self, lines: &[&str]) -> String {
        let mut text = String::new();
        for line in lines {
            let words: Vec<&str> = line
                .split(' ')
                .map(|word| if word == "''" { "" } else { word })
                .collect();
            let output = self.flynn(&words).output().unwrap();
            text.push_str(&format!("$ flynn {line}\n{}", shown(&output)));
        }
        text
    }
}

/// Output, error output and status.
pub fn shown(output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr: String = String::from_utf8_lossy(&output.stderr)
        .lines()
        .map(|line| format!("[stderr] {line}\n"))
        .collect();
    let status = match output.status.code() {
        Some(0) => String::new(),
        Some(code) => format!("[exit {code}]\n"),
        None => format!("[{}]\n", output.status),
    };
    format!("{stdout}{stderr}{status}")
}
