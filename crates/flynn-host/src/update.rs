//! `flynn-host update`: other programs take the place of this host's, while everything runs.
//!
//! ```text
//! check ─▶ put in place ─▶ daemon starts anew ─▶ router takes over ─▶ done
//!              ▲                  │ does not come up │ does not serve
//!              └──── the programs before, and all anew ◀┘
//! ```
//!
//! Jobs are not touched: they are no children of the daemon. Requests are not, either: the router's
//! sockets are held by its keeper, and one router takes over from the other. The programs before stay
//! beside the new ones as `NAME.previous`. This is about one host; [`crate::update_all`] is about all.
//!
//! What a reader would get wrong: shims of running jobs, the keeper and the supervisor go on with the
//! program that they were started from. They hold so little that it seldom matters; `script/up` or a
//! reboot replaces them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use types::Host;

use crate::{config::Config, host_client, supervise::runs_program};

/// To go back: the supervisor pauses up to 5 s before it starts again what ended at once.
pub const GO_BACK_MIN: Duration = Duration::from_secs(30);
pub const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What is replaced, as it is called where it was built.
pub const NAMES: [&str; 3] = ["flynn-host", "flynn", "flynn-shim"];

/// One file that is replaced.
pub struct Program {
    pub name: &'static str,
    pub new: PathBuf,
    place: PathBuf,
}

pub async fn run(config: &Config, directory: &Path, patience: Duration) -> Result<()> {
    let began = Instant::now();
    let host = config.host_id()?;
    let before = this_host(config).await.context(
        "the daemon of this host does not answer, so there is nothing to compare with\nhint: start it first, or run script/up",
    )?;
    let programs = programs(config, directory)?;
    let version = version_of(&programs[0].new).await?;
    println!("-----> Updating {host} from {} to {version}", before.version);

    for (index, program) in programs.iter().enumerate() {
        if let Err(error) = program.put_in_place() {
            for program in &programs[..index] {
                program.go_back()?;
            }
            return Err(error);
        }
    }
    let mut renewal = renew(config, patience).await;
    if let Err(error) = renewal {
        println!(" !     {error:#}");
        println!("-----> Going back to {}", before.version);
        for program in &programs {
            program.go_back()?;
        }
        renew(config, patience.max(GO_BACK_MIN))
            .await
            .context("the programs before do not come up either")?;
        renewal = Err(error.context("the host was not updated; it runs the programs before"));
    }
    renewal?;
    println!(
        "=====> {host} runs {version} ({:.1} s)",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Starts daemon and router anew, from the programs that are there now.
async fn renew(config: &Config, patience: Duration) -> Result<()> {
    let began = Instant::now();
    let after = daemon::now();
    restart_daemon(config).await?;
    let came_up = async {
        loop {
            // It is another daemon, not the one before in its last moment.
            match this_host(config).await {
                Ok(host) if host.started_at >= after && host.state == types::HostState::Up => return,
                _ => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    };
    let late = |_| anyhow::anyhow!("the daemon did not come up within {} s", patience.as_secs());
    tokio::time::timeout(patience, came_up).await.map_err(late)?;
    println!("       daemon is up ({:.1} s)", began.elapsed().as_secs_f64());

    let began = Instant::now();
    let serving = config.state().run().join("router-serving.pid");
    let before = fs::read_to_string(&serving).unwrap_or_default();
    renew_router(config).await?;
    let took_over = async {
        while fs::read_to_string(&serving).unwrap_or_default() == before {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let late = |_| {
        let seconds = patience.as_secs();
        anyhow::anyhow!("no new router came to serve within {seconds} s; the one before still does")
    };
    tokio::time::timeout(patience, took_over).await.map_err(late)?;
    println!("       router took over ({:.1} s)", began.elapsed().as_secs_f64());
    renew_tunnel(config).await
}

async fn this_host(config: &Config) -> Result<Host> {
    let id = config.host_id()?;
    let controller = host_client::controller(config)?;
    let call = controller.client().get::<Vec<Host>>("/hosts");
    let hosts = tokio::time::timeout(Duration::from_secs(2), call)
        .await
        .context("no answer")??;
    let host = hosts.into_iter().find(|host| host.id == id);
    host.with_context(|| format!("the cluster does not know {id}"))
}

/// Goes back to the programs before, as they stand beside the ones that run.
pub async fn run_back(config: &Config, patience: Duration) -> Result<()> {
    let began = Instant::now();
    let host = config.host_id()?;
    let programs = places(config)?.map(|(name, place)| Program {
        name,
        new: PathBuf::new(),
        place,
    });
    ensure!(
        programs[0].previous().exists(),
        "there are no programs before: {} is missing",
        programs[0].previous().display()
    );
    println!("-----> Taking {host} back to the programs before");
    for program in &programs {
        program.go_back()?;
    }
    renew(config, patience.max(GO_BACK_MIN)).await?;
    println!(
        "=====> {host} runs the programs before ({:.1} s)",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The place of this program; the file in it may be another by now.
pub fn own_program() -> std::io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let text = path.to_string_lossy();
    Ok(match text.strip_suffix(" (deleted)") {
        Some(place) => PathBuf::from(place),
        None => path,
    })
}

/// Where each program is, `flynn-host` first.
fn places(config: &Config) -> Result<[(&'static str, PathBuf); 3]> {
    let own = own_program().context("cannot find this program's own file")?;
    let places = [own.clone(), own.with_file_name("flynn"), config.shim.clone()];
    let mut names = NAMES.into_iter();
    Ok(places.map(|place| (names.next().expect("each has a name"), place)))
}

/// The programs that `directory` has, `flynn-host` first.
pub fn programs(config: &Config, directory: &Path) -> Result<Vec<Program>> {
    let mut programs = vec![];
    for (name, place) in places(config)? {
        let new = directory.join(name);
        if new.is_file() {
            programs.push(Program { name, new, place });
        }
    }
    ensure!(
        programs
            .first()
            .is_some_and(|program| program.name == "flynn-host"),
        "there is no flynn-host in {}\nhint: --programs names a directory with flynn-host, flynn-shim and flynn, as `cargo build --release` leaves them",
        directory.display()
    );
    Ok(programs)
}

pub async fn version_of(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("version")
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("{} cannot be run on this machine", program.display()))?;
    if !output.status.success() {
        bail!(
            "{} is no flynn-host: it ends with {}",
            program.display(),
            output.status
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Program {
    fn previous(&self) -> PathBuf {
        let mut name = self.place.clone().into_os_string();
        name.push(".previous");
        name.into()
    }

    /// A file that runs cannot be written to, but another can take its name.
    fn put_in_place(&self) -> Result<()> {
        let why = || format!("cannot replace {}", self.place.display());
        if self.place.exists() {
            replace(&self.place, &self.previous()).with_context(why)?;
        }
        replace(&self.new, &self.place).with_context(why)
    }

    fn go_back(&self) -> Result<()> {
        let why = || format!("cannot restore {}", self.place.display());
        if self.previous().exists() {
            replace(&self.previous(), &self.place).with_context(why)?;
        }
        Ok(())
    }
}

/// A copy of `from` takes the place of `to`, whole or not at all.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let mut name = to.to_owned().into_os_string();
    name.push(".new");
    let new = PathBuf::from(name);
    fs::copy(from, &new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(&new, to)?;
    Ok(())
}

async fn restart_daemon(config: &Config) -> Result<()> {
    if is_supervised(config) {
        return signal(config, "daemon", Signal::TERM);
    }
    systemctl(&["restart", "flynn-host.service"]).await
}

async fn renew_router(config: &Config) -> Result<()> {
    if is_supervised(config) {
        return signal(config, "router", Signal::HUP);
    }
    systemctl(&["reload-or-restart", "flynn-router.service"]).await
}

/// Starts the tunnel anew, if there is one: its interface stays, connections of jobs to other hosts wait a
/// moment, and it asks the others for sessions by itself.
async fn renew_tunnel(config: &Config) -> Result<()> {
    if is_supervised(config) {
        return signal(config, "tunnel", Signal::TERM);
    }
    systemctl(&["try-restart", "flynn-tunnel.service"]).await
}

/// Whether `flynn-host supervise` looks after daemon and router.
fn is_supervised(config: &Config) -> bool {
    running(config, "supervisor", "supervise").is_some()
}

/// A part that does not run just now is one that its supervisor is about to start.
fn signal(config: &Config, part: &str, signal: Signal) -> Result<()> {
    match running(config, part, part) {
        Some(pid) => kill_process(pid, signal).with_context(|| format!("cannot reach the {part}")),
        None => Ok(()),
    }
}

/// The process whose number is in a file of the run directory.
fn running(config: &Config, file: &str, argument: &str) -> Option<Pid> {
    let text = fs::read_to_string(config.state().run().join(format!("{file}.pid"))).ok()?;
    let pid = Pid::from_raw(text.trim().parse().ok()?)?;
    runs_program(pid, argument).then_some(pid)
}

async fn systemctl(arguments: &[&str]) -> Result<()> {
    ensure!(
        Path::new("/run/systemd/system").exists(),
        "daemon and router of this host run under no supervisor that could start them again\nhint: flynn-host supervise"
    );
    let status = Command::new("systemctl")
        .args(arguments)
        .status()
        .await
        .context("cannot run systemctl")?;
    ensure!(status.success(), "systemctl {} failed", arguments.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_replaced_whole_and_the_one_before_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program {
            name: "flynn-host",
            new: dir.path().join("release/flynn-host"),
            place: dir.path().join("bin/flynn-host"),
        };
        for path in [&program.new, &program.place] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(&program.place, "one").unwrap();
        fs::write(&program.new, "two").unwrap();
        let read = || fs::read_to_string(&program.place).unwrap();
        program.put_in_place().unwrap();
        assert_eq!(read(), "two");
        let mode = fs::metadata(&program.place).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        program.go_back().unwrap();
        assert_eq!(read(), "one");
    }

    #[test]
    fn a_directory_without_programs_is_refused_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::default();
        let error = programs(&config, dir.path()).err().unwrap().to_string();
        assert!(error.contains("there is no flynn-host in"), "{error}");
        assert!(error.contains("hint: --programs"), "{error}");
    }
}
