//! What everything of a lab is called and where it is: all of it follows from the lab's name and number,
//! so that `lab down` finds what is there, whatever was interrupted.

use std::{
    collections::BTreeMap,
    fmt,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::clock::Offset;

/// Labs are here, a directory each.
pub const DEFAULT_BASE: &str = "/var/lib/flynn-lab";
/// Interface names are at most 15 bytes, and ours begin with `flab-`.
const NAME_BYTES_MAX: usize = 8;
pub const HOSTS_MAX: u8 = 64;

/// A lab, as its file `lab.json` describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lab {
    pub name: String,
    /// Third byte of its hosts' addresses; labs of one machine have different ones.
    pub number: u8,
    pub hosts: u8,
    pub domain: String,
    pub http_port: u16,
    pub https_port: u16,
    /// Where the programs are that hosts run.
    pub programs: PathBuf,
    /// Whether hosts reach the outside through the machine.
    pub outside: bool,
    /// What was made on the machine to mount the hosts' directories on.
    #[serde(default)]
    pub mount_points: Vec<PathBuf>,
    /// What the machine's switch for forwarding was at.
    #[serde(default)]
    pub forwarding_before: String,
    /// Whether its hosts hand an address of their network around.
    #[serde(default)]
    pub floats: bool,
    #[serde(default)]
    pub slow: BTreeMap<u8, Slow>,
    /// Hosts whose clocks are wrong.
    #[serde(default)]
    pub clocks: BTreeMap<u8, Offset>,
    /// How large the disks are, where hosts have some of their own.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    #[serde(skip)]
    pub base: PathBuf,
}

/// How a host's line is made worse, in each direction, and its disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Slow {
    pub latency_ms: u32,
    pub loss_percent: f64,
    /// How often a second the host's platform can write.
    #[serde(default)]
    pub disk_writes: Option<u32>,
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms slower, {} % lost", self.latency_ms, self.loss_percent)?;
        match self.disk_writes {
            Some(writes) => write!(f, ", {writes} writes/s"),
            None => Ok(()),
        }
    }
}

impl Lab {
    pub fn read(base: &Path, name: &str) -> Result<Lab> {
        check_name(name)?;
        let file = base.join(name).join("lab.json");
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("there is no lab {name:?}\nhint: `flynn-host lab up --name {name}` makes it")
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let mut lab: Lab =
            serde_json::from_slice(&text).with_context(|| format!("{} is not a lab's", file.display()))?;
        lab.base = base.to_owned();
        Ok(lab)
    }

    pub fn write(&self) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self)?;
        let file = self.directory().join("lab.json");
        daemon::files::write_atomic(&file, &bytes, 0o600)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    pub fn directory(&self) -> PathBuf {
        self.base.join(&self.name)
    }

    pub fn host_directory(&self, host: u8) -> PathBuf {
        self.directory().join(host_name(host))
    }

    pub fn console(&self, host: u8) -> PathBuf {
        self.host_directory(host).join("console.log")
    }

    /// The machine's end of the line to the switch.
    pub fn machine_interface(&self) -> String {
        machine_interface(&self.name)
    }

    pub fn switch_namespace(&self) -> String {
        format!("{}-switch", machine_interface(&self.name))
    }

    pub fn host_namespace(&self, host: u8) -> String {
        format!("{}-{}", machine_interface(&self.name), host_name(host))
    }

    pub fn table(&self) -> String {
        table(&self.name)
    }

    pub fn cgroup(&self, host: u8) -> String {
        format!("{}/{}", machine_interface(&self.name), host_name(host))
    }

    pub fn machine_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 87, self.number, 1)
    }

    pub fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 87, self.number, 10 + host)
    }

    /// The address that one host has at a time, with its prefix.
    pub fn floating(&self) -> Option<String> {
        let address = Ipv4Addr::new(10, 87, self.number, 200);
        self.floats.then(|| format!("{address}/24"))
    }

    /// The same at every start, as a machine's card keeps its address.
    pub fn hardware_address(&self, host: u8) -> String {
        format!("02:66:6c:{:02x}:00:{host:02x}", self.number)
    }

    pub fn network(&self) -> String {
        format!("{}/24", Ipv4Addr::new(10, 87, self.number, 0))
    }

    pub fn all_hosts(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.hosts
    }

    /// `host2` or `2`.
    pub fn host(&self, text: &str) -> Result<u8> {
        let number = text.strip_prefix("host").unwrap_or(text).parse::<u8>();
        number
            .ok()
            .filter(|number| (1..=self.hosts).contains(number))
            .with_context(|| {
                format!(
                    "lab {} has no host {text:?}\nhint: it has host1 to host{}",
                    self.name, self.hosts
                )
            })
    }
}

pub fn host_name(host: u8) -> String {
    format!("host{host}")
}

/// Also the beginning of its namespaces' names, and the cgroup that has its hosts'.
pub fn machine_interface(name: &str) -> String {
    format!("flab-{name}")
}

pub fn table(name: &str) -> String {
    format!("flab_{name}")
}

pub fn check_name(name: &str) -> Result<()> {
    let is_plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !is_plain {
        bail!(
            "{name:?} cannot be a lab's name\nhint: up to {NAME_BYTES_MAX} lower-case letters and digits, as \"lab2\""
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_where_the_kernel_wants_them_short() {
        assert!(check_name("lab").is_ok());
        assert!(check_name("").is_err());
        assert!(check_name("lab-2").is_err());
        assert!(check_name("muchtoolong").is_err());
        assert!(machine_interface("eightbyt").len() <= 15);
    }

    #[test]
    fn hosts_are_asked_for_by_name_or_number() {
        let lab = Lab {
            name: "lab".into(),
            number: 3,
            hosts: 3,
            domain: "flynn.localhost".into(),
            http_port: 80,
            https_port: 443,
            programs: "/usr/local/bin".into(),
            outside: true,
            mount_points: vec![],
            forwarding_before: String::new(),
            floats: false,
            slow: BTreeMap::new(),
            clocks: BTreeMap::new(),
            disk_bytes: None,
            base: "/labs".into(),
        };
        assert_eq!(lab.host("host2").unwrap(), 2);
        assert_eq!(lab.host("3").unwrap(), 3);
        let error = lab.host("host4").unwrap_err().to_string();
        assert!(error.contains("host1 to host3"), "{error}");
        assert_eq!(lab.address(2).to_string(), "10.87.3.12");
        assert_eq!(lab.host_namespace(2), "flab-lab-host2");
    }
}
