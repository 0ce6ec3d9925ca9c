//! `flynn-host lab`: a whole cluster on one machine, to try things on: what happens when a host loses power,
//! the network is cut in two, or half of all packets are lost.
//!
//! Each host has namespaces of its own (network, processes, mounts, name, cgroups) and a cgroup; in it run the
//! same programs as on any host. What is the machine's stays as it is, but for what `network` names.
//!
//! ```text
//! layout    what everything is called, from the lab's name
//! network   the switch, lines, cuts, loss
//! disk      a host's disk: small, slow
//! clock     a host's clock: wrong
//! host      one host on and off                      (seen from the machine)
//! inside    the host's first process                 (seen from within)
//! cluster   the hosts made one cluster
//! serving   whether a host's router answers
//! ```
//!
//! What a reader would get wrong: hosts are no children of any lab command, which all end at once. What is
//! there is seen from the kernel (namespaces, cgroups, rules) and not remembered; `lab.json` has only what was
//! asked for.

pub mod clock;
mod cluster;
mod disk;
mod host;
pub mod inside;
mod layout;
mod network;
mod serving;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use container::cgroup::Cgroup;
use daemon::files;
use layout::{DEFAULT_BASE, HOSTS_MAX, Lab, Slow, host_name};

use crate::{config::Config, format::table};

#[derive(Args)]
pub struct LabArgs {
    /// Which lab; several can be there at once
    #[arg(long, global = true, default_value = "lab", env = "FLYNN_LAB")]
    name: String,
    /// Where labs are kept
    #[arg(long, global = true, default_value = DEFAULT_BASE, env = "FLYNN_LAB_DIR")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a lab and start its cluster
    ///
    /// Example:
    ///   $ flynn-host lab up --hosts 3
    ///   $ flynn-host lab exec host1 -- flynn create shop
    #[command(verbatim_doc_comment)]
    Up {
        #[arg(long, default_value_t = 3)]
        hosts: u8,
        /// The cluster's domain
        #[arg(long, default_value = "flynn.localhost")]
        domain: String,
        #[arg(long, default_value_t = 80)]
        http_port: u16,
        #[arg(long, default_value_t = 443)]
        https_port: u16,
        /// Where the images are that apps run on, as in a host's state directory; this machine's, if it has some
        #[arg(long)]
        images: Option<PathBuf>,
        /// Run the programs that are here, of another version perhaps, instead of this one and its neighbours
        #[arg(long)]
        programs: Option<PathBuf>,
        /// Leave the hosts without a way to the outside
        #[arg(long)]
        no_outside: bool,
        /// Make each host a cluster of its own
        #[arg(long)]
        apart: bool,
        /// Let the hosts hand an address around, 10.87.N.200, which one living host has at a time
        #[arg(long, conflicts_with = "apart")]
        floating: bool,
        /// Give each host a disk of its own, which can be full without the machine's being so; as 4G
        #[arg(long, value_parser = gigabytes)]
        disk: Option<u64>,
    },
    /// End a lab and remove everything of it
    Down,
    /// List labs
    List,
    /// Show a lab's hosts, and what is wrong with them on purpose
    Status,
    /// Cut a host's power: everything in it is killed at once
    Kill { host: String },
    /// Start a host that is off
    Start {
        host: String,
        /// Run the programs that are here from now on, in every host that is started
        #[arg(long)]
        programs: Option<PathBuf>,
        /// Set its platform's clock wrong from now on, as +5m; 0 sets it right
        #[arg(long, value_parser = clock::parse, allow_hyphen_values = true)]
        clock: Option<clock::Offset>,
        /// Return when its router answers for the controller
        #[arg(long)]
        wait: bool,
    },
    /// Shut a host down and start it again
    Reboot {
        host: String,
        /// Set its platform's clock wrong from now on, as +5m; 0 sets it right
        #[arg(long, value_parser = clock::parse, allow_hyphen_values = true)]
        clock: Option<clock::Offset>,
        /// Return when its router answers for the controller
        #[arg(long)]
        wait: bool,
    },
    /// Cut a host off, or two hosts from each other
    ///
    /// Example:
    ///   $ flynn-host lab cut host1
    ///   $ flynn-host lab cut host1 host2
    ///   $ flynn-host lab cut host1 host2 --one-way     # host2 does not hear host1
    #[command(verbatim_doc_comment)]
    Cut {
        host: String,
        other: Option<String>,
        /// Only what comes from the first
        #[arg(long)]
        one_way: bool,
    },
    /// Make a host's line slow or lossy, in both directions, or its disk slow
    ///
    /// Example:
    ///   $ flynn-host lab slow host3 --latency 50ms --loss 30%
    ///   $ flynn-host lab slow host3 --disk-writes 20
    #[command(verbatim_doc_comment)]
    Slow {
        host: String,
        /// Added to each packet, each way
        #[arg(long, value_parser = milliseconds, default_value = "0ms")]
        latency: u32,
        /// Of packets, each way
        #[arg(long, value_parser = percent, default_value = "0%")]
        loss: f64,
        /// How often a second its platform can write to its disk
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        disk_writes: Option<u32>,
    },
    /// Make all lines and disks good again
    Heal,
    /// Run a command in a host
    ///
    /// `flynn` and `flynn-host` are found, and `flynn` knows the cluster.
    ///
    /// Example:
    ///   $ flynn-host lab exec host1 -- flynn-host list
    #[command(verbatim_doc_comment)]
    Exec {
        host: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Print what a host's platform said
    Log { host: String },
}

fn milliseconds(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("ms").unwrap_or(text);
    number.parse().map_err(|_| "give milliseconds, as 50ms".into())
}

fn gigabytes(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix(['G', 'g']).unwrap_or(text).parse::<u64>();
    number
        .ok()
        .filter(|gigabytes| (1..=1024).contains(gigabytes))
        .map(|gigabytes| gigabytes << 30)
        .ok_or_else(|| "give gigabytes, as 4G".into())
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>();
    number
        .ok()
        .filter(|percent| (0.0..=100.0).contains(percent))
        .ok_or_else(|| "give a part of a hundred, as 30%".into())
}

pub fn run(args: LabArgs, config: Config) -> Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "labs need root: they are made of namespaces\nhint: run this with sudo"
    );
    layout::check_name(&args.name)?;
    let lab = || Lab::read(&args.dir, &args.name);
    match args.command {
        Command::Up {
            hosts,
            domain,
            http_port,
            https_port,
            images,
            programs,
            no_outside,
            apart,
            floating,
            disk,
        } => {
            let wish = Lab {
                name: args.name,
                number: 0,
                hosts,
                domain,
                http_port,
                https_port,
                programs: programs_in(programs)?,
                outside: !no_outside,
                mount_points: vec![],
                forwarding_before: network::forwarding()?,
                floats: floating,
                slow: Default::default(),
                clocks: Default::default(),
                disk_bytes: disk,
                base: args.dir,
            };
            up(wish, &config, images, apart)?;
        }
        Command::Down => down(&args.dir, &args.name)?,
        Command::List => list(&args.dir)?,
        Command::Status => status(&lab()?)?,
        Command::Kill { host } => {
            let lab = lab()?;
            host::kill(&lab, lab.host(&host)?)?;
        }
        Command::Start {
            host,
            programs,
            clock,
            wait,
        } => {
            let mut lab = lab()?;
            let host = lab.host(&host)?;
            if programs.is_some() {
                lab.programs = programs_in(programs)?;
                lab.write()?;
            }
            set_clock(&mut lab, host, clock)?;
            start(&lab, host, &config, wait)?;
        }
        Command::Reboot { host, clock, wait } => {
            let mut lab = lab()?;
            let host = lab.host(&host)?;
            set_clock(&mut lab, host, clock)?;
            host::shut_down(&lab, host)?;
            start(&lab, host, &config, wait)?;
        }
        Command::Cut { host, other, one_way } => {
            let lab = lab()?;
            let host = lab.host(&host).map(host_name)?;
            let other = other.map(|other| lab.host(&other).map(host_name)).transpose()?;
            cut(&lab, &host, other.as_deref(), one_way)?;
        }
        Command::Slow {
            host,
            latency,
            loss,
            disk_writes,
        } => {
            let mut lab = lab()?;
            let host = lab.host(&host)?;
            let slow = Slow {
                latency_ms: latency,
                loss_percent: loss,
                disk_writes,
            };
            if host::first_process(&lab, host)?.is_some() {
                host::make_slow(&lab, host, slow)?;
            }
            lab.slow.insert(host, slow);
            lab.write()?;
        }
        Command::Heal => {
            let mut lab = lab()?;
            network::heal(&lab)?;
            for host in lab.slow.keys() {
                disk::set_writes_per_second(&lab, *host, None)?;
            }
            lab.slow.clear();
            lab.write()?;
        }
        Command::Exec { host, command } => {
            let lab = lab()?;
            let host = lab.host(&host)?;
            let mut inside = host::command(&lab, host)?;
            host::enter_cgroup(&lab, host)?;
            let status = inside.args(command).status().context("cannot run nsenter")?;
            return Ok(ExitCode::from(
                status
                    .code()
                    .and_then(|code| u8::try_from(code).ok())
                    .unwrap_or(255),
            ));
        }
        Command::Log { host } => {
            let lab = lab()?;
            let console = lab.console(lab.host(&host)?);
            let mut file =
                fs::File::open(&console).with_context(|| format!("cannot read {}", console.display()))?;
            std::io::copy(&mut file, &mut std::io::stdout())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn set_clock(lab: &mut Lab, host: u8, offset: Option<clock::Offset>) -> Result<()> {
    match offset {
        None => return Ok(()),
        Some(clock::Offset(0)) => lab.clocks.remove(&host),
        Some(offset) => lab.clocks.insert(host, offset),
    };
    lab.write()
}

fn programs_in(directory: Option<PathBuf>) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let Some(directory) = directory else {
        return Ok(own.parent().unwrap_or(Path::new("/")).to_owned());
    };
    let directory = directory
        .canonicalize()
        .with_context(|| format!("cannot find {}", directory.display()))?;
    ensure!(
        directory.join("flynn-host").exists(),
        "there is no flynn-host in {}",
        directory.display()
    );
    Ok(directory)
}

/// Prints each step with the time that it took.
struct Steps {
    began: Instant,
    last: Instant,
}

impl Steps {
    fn new() -> Steps {
        let began = Instant::now();
        Steps { began, last: began }
    }

    fn done(&mut self, what: &str) {
        println!("{:>6.2} s  {what}", self.last.elapsed().as_secs_f64());
        self.last = Instant::now();
    }
}

fn up(mut lab: Lab, config: &Config, images: Option<PathBuf>, apart: bool) -> Result<()> {
    if !(1..=HOSTS_MAX).contains(&lab.hosts) {
        bail!("a lab has 1 to {HOSTS_MAX} hosts");
    }
    for tool in ["ip", "nft", "nsenter", "unshare", "setsid"] {
        network::run(&format!("{tool} --version"), None)
            .or_else(|_| network::run(&format!("{tool} -V"), None))
            .map_err(|_| {
                anyhow::anyhow!("labs need {tool}\nhint: apt-get install iproute2 nftables util-linux")
            })?;
    }
    let directory = lab.directory();
    if directory.exists() {
        let name = &lab.name;
        bail!("there is a lab {name:?} already\nhint: `flynn-host lab down --name {name}` removes it");
    }
    let images = images.or_else(|| {
        let machines = config.state_dir.clone();
        machines.join("images").exists().then_some(machines)
    });
    if images.is_none() {
        eprintln!(
            "note: this machine has no images, so that nothing can be pushed; script/base-image makes some, and \
             --images DIRECTORY says where they are"
        );
    }
    let mut steps = Steps::new();
    files::create_private_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    make_network(&mut lab)?;
    steps.done(&format!("switch, and {} for the lab", lab.network()));
    let kept = |error: anyhow::Error| {
        error.context(format!(
            "the lab is not up\nhint: {} has what its hosts said; `flynn-host lab down --name {}` removes it",
            lab.directory().display(),
            lab.name
        ))
    };
    for host in lab.all_hosts() {
        let join = match (apart, host) {
            (true, _) => None,
            (false, 1) => Some(cluster::init_arguments(&lab, 1)),
            (false, _) => Some(cluster::join_arguments(&lab, 1).map_err(kept)?),
        };
        host::prepare(&lab, host, config, images.as_deref(), join.as_deref()).map_err(kept)?;
        host::start(&lab, host, config).map_err(kept)?;
        steps.done(&format!("{} at {}", host_name(host), lab.address(host)));
        if host == 1 {
            serving::wait(&lab, 1).map_err(kept)?;
            steps.done("host1 serves");
        }
    }
    for host in lab.all_hosts() {
        serving::wait(&lab, host).map_err(kept)?;
    }
    steps.done("all serve");
    if !apart {
        cluster::wait_until_together(&lab).map_err(kept)?;
        steps.done("all are one cluster");
        match cluster::add_to_cli(&lab) {
            Ok(()) => steps.done("flynn knows it, in every host"),
            Err(error) => eprintln!("note: flynn does not know the cluster: {error:#}"),
        }
    }
    if let Some(floating) = lab.floating() {
        println!("the hosts hand {floating} around; `flynn-host list` shows who has it");
    }
    println!("{:>6.2} s  in all", steps.began.elapsed().as_secs_f64());
    Ok(())
}

fn make_network(lab: &mut Lab) -> Result<()> {
    // Two labs that are made at the same time must not choose the same number.
    let lock = fs::File::create("/run/flynn-lab.lock").context("cannot make /run/flynn-lab.lock")?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    lab.number = network::free_number()?;
    for path in ["/var/lib/flynn", "/etc/flynn"].map(Path::new) {
        if !path.exists() {
            lab.mount_points.push(path.to_owned());
            lab.write()?;
            files::create_private_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
        }
    }
    lab.write()?;
    network::make_switch(lab)
}

fn start(lab: &Lab, host: u8, config: &Config, wait: bool) -> Result<()> {
    host::start(lab, host, config)?;
    if wait {
        serving::wait(lab, host)?;
    }
    Ok(())
}

/// Removes all that has the lab's name, also what an interrupted command left half made.
fn down(base: &Path, name: &str) -> Result<()> {
    let cgroup = Cgroup::locate(&layout::machine_interface(name))?;
    host::wait_until(Duration::from_secs(10), || {
        cgroup.kill();
        Ok(cgroup.processes().is_empty())
    })
    .context("the lab's processes do not end")?;
    cgroup.destroy().context("cannot remove the lab's cgroup")?;
    network::remove_all(name)?;
    let directory = base.join(name);
    disk::unmount_all(&directory)?;
    if let Ok(lab) = Lab::read(base, name) {
        network::restore_forwarding(&lab.forwarding_before)?;
        for path in &lab.mount_points {
            // Another lab may need it, or something may be in it now.
            let _ = fs::remove_dir(path);
        }
    }
    if directory.exists() {
        files::remove_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    // The last one leaves nothing.
    if base == Path::new(DEFAULT_BASE) {
        let _ = fs::remove_dir(base);
    }
    Ok(())
}

fn cut(lab: &Lab, host: &str, other: Option<&str>, one_way: bool) -> Result<()> {
    network::cut(lab, host, other)?;
    match (other, one_way) {
        (_, true) => Ok(()),
        (Some(other), false) => network::cut(lab, other, Some(host)),
        (None, false) => network::cut_towards(lab, host),
    }
}

fn list(base: &Path) -> Result<()> {
    let mut rows = vec![["NAME", "HOSTS", "NETWORK", "DOMAIN"].map(str::to_owned).to_vec()];
    let mut names: Vec<_> = fs::read_dir(base)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    names.sort();
    for name in names {
        if let Ok(lab) = Lab::read(base, &name.to_string_lossy()) {
            rows.push(vec![
                lab.name.clone(),
                lab.hosts.to_string(),
                lab.network(),
                lab.domain.clone(),
            ]);
        }
    }
    print!("{}", table(&rows));
    Ok(())
}

fn status(lab: &Lab) -> Result<()> {
    let mut rows = vec![
        ["HOST", "ADDR", "POWER", "SERVES", "WRONG ON PURPOSE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for host in lab.all_hosts() {
        let power = if host::first_process(lab, host)?.is_some() {
            "on"
        } else {
            "off"
        };
        let serves = if serving::answers(lab, host) { "yes" } else { "no" };
        let slow = lab.slow.get(&host).map(Slow::to_string);
        let clock = lab.clocks.get(&host).map(|offset| format!("clock {offset}"));
        let wrong: Vec<String> = slow.into_iter().chain(clock).collect();
        rows.push(vec![
            host_name(host),
            lab.address(host).to_string(),
            power.into(),
            serves.into(),
            wrong.join(", "),
        ]);
    }
    print!("{}", table(&rows));
    for cut in network::cuts(lab)? {
        println!("cut: {cut}");
    }
    Ok(())
}
