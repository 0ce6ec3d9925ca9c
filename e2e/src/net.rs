//! A network namespace with a way out: package registries must be reachable from builds.

use std::{fs::File, os::fd::AsFd, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub struct NetNs {
    name: String,
    outside: String,
    /// What the machine's forwarding was, where it had to be on for this.
    forwarding: Option<String>,
}

/// A switch between hosts of one cluster, in a namespace of its own: nothing leads out.
pub struct Switch {
    name: String,
}

impl Switch {
    pub fn new(name: &str) -> Result<Switch> {
        let switch = Switch {
            name: name.to_owned(),
        };
        run(&format!("ip netns add {name}"))?;
        run(&format!("ip -n {name} link add br0 type bridge"))?;
        run(&format!("ip -n {name} link set br0 up"))?;
        Ok(switch)
    }

    /// A namespace for one host, with an address such as `10.77.0.1`.
    pub fn host(&self, name: &str, address: &str) -> Result<NetNs> {
        let net = NetNs {
            name: name.to_owned(),
            outside: String::new(),
            forwarding: None,
        };
        let (switch, port) = (&self.name, format!("{name}p"));
        run(&format!("ip netns add {name}"))?;
        run(&format!(
            "ip -n {name} link add eth0 type veth peer name {port} netns {switch}"
        ))?;
        run(&format!("ip -n {switch} link set {port} master br0 up"))?;
        run(&format!("ip -n {name} link set lo up"))?;
        run(&format!("ip -n {name} addr add {address}/24 dev eth0"))?;
        run(&format!("ip -n {name} link set eth0 up"))?;
        Ok(net)
    }

    /// Pulls a host's cable, or puts it back.
    pub fn cable(&self, host: &str, is_in: bool) -> Result<()> {
        let state = if is_in { "up" } else { "down" };
        run(&format!("ip -n {} link set {host}p {state}", self.name))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = run(&format!("ip netns del {}", self.name));
    }
}

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

impl NetNs {
    pub fn new(name: &str) -> Result<NetNs> {
        // A /30 of 198.18.0.0/15, which is set aside for tests, by the process id.
        let slot = std::process::id() % 32_768;
        let (third, fourth) = (slot * 4 / 256 % 256, slot * 4 % 256);
        let second = 18 + slot * 4 / 65_536;
        let outside = format!("198.{second}.{third}.{}", fourth + 1);
        let inside = format!("198.{second}.{third}.{}", fourth + 2);
        let net = NetNs {
            name: name.to_owned(),
            outside: outside.clone(),
            forwarding: Some(std::fs::read_to_string(FORWARDING)?),
        };
        let host_end = format!("{name}h");
        run(&format!("ip netns add {name}"))?;
        run(&format!(
            "ip link add {host_end} type veth peer name eth0 netns {name}"
        ))?;
        run(&format!("ip addr add {outside}/30 dev {host_end}"))?;
        run(&format!("ip link set {host_end} up"))?;
        run(&format!("ip -n {name} link set lo up"))?;
        run(&format!("ip -n {name} addr add {inside}/30 dev eth0"))?;
        run(&format!("ip -n {name} link set eth0 mtu 1400 up"))?;
        run(&format!("ip -n {name} route add default via {outside}"))?;
        let rules = format!(
            "table ip {name} {{\n chain out {{\n type nat hook postrouting priority srcnat;\n \
             ip saddr {inside} oifname != \"{host_end}\" masquerade\n }}\n}}\n"
        );
        let file = std::env::temp_dir().join(format!("{name}.nft"));
        std::fs::write(&file, rules)?;
        let loaded = run(&format!("nft -f {}", file.display()));
        std::fs::remove_file(&file)?;
        loaded?;
        std::fs::write(FORWARDING, "1")?;
        Ok(net)
    }

    pub fn path(&self) -> PathBuf {
        format!("/run/netns/{}", self.name).into()
    }

    /// The machine's address on the way out of the namespace: from within, it is another machine's.
    pub fn outside(&self) -> String {
        self.outside.clone()
    }

    /// Does something on a thread that is in this namespace.
    pub fn within<T: Send>(&self, deed: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter().expect("the namespace is there");
                    deed()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into this namespace, for good.
    pub fn enter(&self) -> Result<()> {
        let file = File::open(self.path()).context("the network namespace is gone")?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        let Some(forwarding) = &self.forwarding else {
            let _ = run(&format!("ip netns del {}", self.name));
            return;
        };
        let _ = run(&format!("nft delete table ip {}", self.name));
        let _ = run(&format!("ip link del {}h", self.name));
        let _ = run(&format!("ip netns del {}", self.name));
        // Other tests may still need it; whoever found it off and is last puts it back.
        let others = std::fs::read_dir("/run/netns").map_or(0, |entries| {
            entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("fe"))
                .count()
        });
        if others == 0 && forwarding.trim() == "0" {
            let _ = std::fs::write(FORWARDING, "0");
        }
    }
}

fn run(command: &str) -> Result<()> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .with_context(|| command.to_owned())?;
    ensure!(
        output.status.success(),
        "`{command}`: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
