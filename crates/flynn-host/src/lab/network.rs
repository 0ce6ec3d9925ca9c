//! The lab's lines: a switch in a network namespace of its own, a line from it to each host and to the
//! machine, and what is wrong with them on demand.
//!
//! ```text
//!  machine: flab-NAME ── uplink ┐
//!  host1's namespace: eth0 ── host1 ┼─ br0      (all of this side in namespace flab-NAME-switch)
//!  host2's namespace: eth0 ── host2 ┘
//! ```
//!
//! Of the machine's own network only these are used: one interface, one table of nftables for the way
//! out, and forwarding, which is put back when the last lab goes.
//!
//! Cuts are rules of the switch, so that nothing on a host can see why the others do not answer. Latency
//! needs the kernel's `netem`; loss has a way without it.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::layout::{Lab, Slow, host_name, machine_interface, table};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// A number that no other lab of this machine has.
pub fn free_number() -> Result<u8> {
    let addresses = run("ip -oneline -family inet address", None)?;
    (0..=255)
        .find(|number| !addresses.contains(&format!(" 10.87.{number}.")))
        .context("this machine has no room for another lab")
}

pub fn make_switch(lab: &Lab) -> Result<()> {
    let (switch, machine, mtu) = (lab.switch_namespace(), lab.machine_interface(), mtu()?);
    run(&format!("ip netns add {switch}"), None)?;
    // Listening in on group memberships would delay what hosts announce.
    batch(
        Some(&switch),
        "link set lo up\n\
         link add br0 type bridge mcast_snooping 0\n\
         link set br0 up\n",
    )?;
    batch(
        None,
        &format!(
            "link add {machine} mtu {mtu} type veth peer name uplink mtu {mtu} netns {switch}\n\
             addr add {}/24 dev {machine}\n\
             link set {machine} up\n",
            lab.machine_address()
        ),
    )?;
    batch(Some(&switch), "link set uplink master br0 up\n")?;
    // Frames are looked at where they come in: what goes to one port, and what is flooded to all.
    nft(
        Some(&switch),
        "table bridge lab {\n chain cuts { type filter hook forward priority 0; }\n \
         chain losses { type filter hook forward priority 1; }\n}\n",
    )?;
    if lab.outside {
        nft(
            None,
            &format!(
                "table ip {} {{\n chain out {{\n type nat hook postrouting priority srcnat;\n \
                 ip saddr {} oifname != \"{machine}\" masquerade\n }}\n}}\n",
                lab.table(),
                lab.network()
            ),
        )?;
        std::fs::write(FORWARDING, "1").context("cannot switch forwarding on")?;
    }
    Ok(())
}

pub fn forwarding() -> Result<String> {
    Ok(std::fs::read_to_string(FORWARDING)?.trim().to_owned())
}

/// A namespace for a host, and its line.
pub fn connect(lab: &Lab, host: u8) -> Result<()> {
    let (switch, inside, port, mtu) = (
        lab.switch_namespace(),
        lab.host_namespace(host),
        host_name(host),
        mtu()?,
    );
    run(&format!("ip netns add {inside}"), None)?;
    batch(
        Some(&switch),
        &format!(
            "link add {port} mtu {mtu} type veth peer name eth0 address {} mtu {mtu} netns {inside}\n\
             link set {port} master br0 up\n",
            lab.hardware_address(host)
        ),
    )?;
    batch(
        Some(&inside),
        &format!(
            "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {}\n",
            lab.address(host),
            lab.machine_address()
        ),
    )
}

/// Takes a host's plug out: nothing that its dying processes still say is heard.
pub fn unplug(lab: &Lab, host: u8) -> Result<()> {
    batch(
        Some(&lab.switch_namespace()),
        &format!("link set {} down\n", host_name(host)),
    )
}

/// Removes a host's namespace with its line and all that the host made in it.
pub fn disconnect(lab: &Lab, host: u8) -> Result<()> {
    // The switch's end at once, as the kernel takes a namespace apart when it has time.
    let _ = batch(
        Some(&lab.switch_namespace()),
        &format!("link del {}\n", host_name(host)),
    );
    let namespace = lab.host_namespace(host);
    if namespaces()?.contains(&namespace) {
        run(&format!("ip netns del {namespace}"), None)?;
    }
    Ok(())
}

/// Everything of a lab by its name, whatever is there of it.
pub fn remove_all(name: &str) -> Result<()> {
    let machine = machine_interface(name);
    let mine = format!("{machine}-");
    for namespace in namespaces()?.into_iter().filter(|found| found.starts_with(&mine)) {
        run(&format!("ip netns del {namespace}"), None)?;
    }
    if std::path::Path::new("/sys/class/net").join(&machine).exists() {
        run(&format!("ip link del {machine}"), None)?;
    }
    let tables = run("nft list tables", None)?;
    let table = format!("table ip {}", table(name));
    if tables.lines().any(|line| line == table) {
        run(&format!("nft delete {table}"), None)?;
    }
    Ok(())
}

/// Puts the machine's forwarding back, unless another lab needs it.
pub fn restore_forwarding(before: &str) -> Result<()> {
    let others = namespaces()?.iter().any(|found| found.starts_with("flab-"));
    if before == "0" && !others {
        std::fs::write(FORWARDING, "0").context("cannot switch forwarding off")?;
    }
    Ok(())
}

/// Drops what goes from one port to another; the other is every port where none is given.
pub fn cut(lab: &Lab, from: &str, to: Option<&str>) -> Result<()> {
    let to = to.map(|to| format!("oifname \"{to}\" ")).unwrap_or_default();
    rule(lab, "cuts", &format!("iifname \"{from}\" {to}drop"))
}

/// Drops what goes to a port, from anywhere.
pub fn cut_towards(lab: &Lab, to: &str) -> Result<()> {
    rule(lab, "cuts", &format!("oifname \"{to}\" drop"))
}

pub fn make_slow(lab: &Lab, host: u8, slow: Slow) -> Result<()> {
    let port = host_name(host);
    let (switch, inside) = (lab.switch_namespace(), lab.host_namespace(host));
    let netem = format!("delay {}ms loss {}%", slow.latency_ms, slow.loss_percent);
    let queue = |namespace: &str, device: &str| {
        run(
            &format!("tc -netns {namespace} qdisc replace dev {device} root netem {netem}"),
            None,
        )
    };
    match queue(&switch, &port).and_then(|_| queue(&inside, "eth0")) {
        Ok(_) => Ok(()),
        Err(_) if slow.latency_ms == 0 => {
            let mut all = lab.slow.clone();
            all.insert(host, slow);
            let rules: String = all.iter().map(|(host, slow)| losses(*host, slow)).collect();
            nft(Some(&switch), &format!("flush chain bridge lab losses\n{rules}"))
        }
        Err(error) => Err(error.context(
            "cannot delay packets\nhint: this needs the kernel's netem (CONFIG_NET_SCH_NETEM); --loss alone \
             works without it",
        )),
    }
}

/// Rules that lose a part of what goes to and comes from a host.
fn losses(host: u8, slow: &Slow) -> String {
    // nft takes no comparison that is always true.
    let chance = match (slow.loss_percent * 100.0).round() as u32 {
        0 => return String::new(),
        10_000.. => String::new(),
        part => format!("numgen random mod 10000 < {part} "),
    };
    let port = host_name(host);
    ["iifname", "oifname"]
        .map(|direction| format!("add rule bridge lab losses {direction} \"{port}\" {chance}drop\n"))
        .concat()
}

pub fn heal(lab: &Lab) -> Result<()> {
    let switch = lab.switch_namespace();
    nft(
        Some(&switch),
        "flush chain bridge lab cuts\nflush chain bridge lab losses\n",
    )?;
    for host in lab.slow.keys() {
        for (namespace, device) in [
            (&switch, host_name(*host)),
            (&lab.host_namespace(*host), "eth0".into()),
        ] {
            // There is none where the loss was made by a rule, or the host is off.
            let _ = run(
                &format!("tc -netns {namespace} qdisc del dev {device} root"),
                None,
            );
        }
    }
    Ok(())
}

/// What is wrong on purpose, in nftables' words.
pub fn cuts(lab: &Lab) -> Result<Vec<String>> {
    let text = run(
        &format!(
            "ip netns exec {} nft list table bridge lab",
            lab.switch_namespace()
        ),
        None,
    )?;
    let rules = text.lines().map(str::trim).filter(|line| line.ends_with("drop"));
    Ok(rules.map(str::to_owned).collect())
}

fn rule(lab: &Lab, chain: &str, rule: &str) -> Result<()> {
    nft(
        Some(&lab.switch_namespace()),
        &format!("add rule bridge lab {chain} {rule}\n"),
    )
}

/// Frames that leave the lab must fit what the machine sends by.
fn mtu() -> Result<u32> {
    let route = run("ip -oneline route show default", None)?;
    let device = route.split_whitespace().skip_while(|word| *word != "dev").nth(1);
    let Some(device) = device else { return Ok(1500) };
    let mtu = std::fs::read_to_string(format!("/sys/class/net/{device}/mtu"))?;
    Ok(mtu.trim().parse::<u32>()?.min(1500))
}

fn namespaces() -> Result<Vec<String>> {
    let entries = match std::fs::read_dir("/run/netns") {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error).context("cannot read /run/netns"),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn batch(namespace: Option<&str>, commands: &str) -> Result<()> {
    let command = match namespace {
        Some(namespace) => format!("ip -netns {namespace} -batch -"),
        None => "ip -batch -".to_owned(),
    };
    run(&command, Some(commands)).map(drop)
}

fn nft(namespace: Option<&str>, commands: &str) -> Result<()> {
    let command = match namespace {
        Some(namespace) => format!("ip netns exec {namespace} nft -f -"),
        None => "nft -f -".to_owned(),
    };
    run(&command, Some(commands)).map(drop)
}

/// Runs a program with this input, and gives what it prints.
pub fn run(command: &str, input: Option<&str>) -> Result<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", words[0]))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{command}` failed: {}{}",
            said.trim(),
            input.map(|input| format!("\n{input}")).unwrap_or_default()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
