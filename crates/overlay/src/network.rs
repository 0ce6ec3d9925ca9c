//! Carries plans out: the only place where this crate changes the machine, besides [`crate::attach`].
//!
//! Every operation may be repeated, and each leaves a working state if the process dies in the middle: opening again
//! finishes what was begun.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Mutex, MutexGuard};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteType};
use nix::errno::Errno;
use tracing::{debug, info, warn};

use crate::attach::{self, Namespace, on_own_thread};
use crate::elements::{self, Elements};
use crate::map::{self, Map};
use crate::netlink::{self, Netlink};
use crate::plan::{self, Attachment, Plan};
use crate::{Attached, Config, Error, Finding, Lease, Leases, Peer, Subnet, diagnose, nft, peers, ruleset};

/// Of the route that ends what is for no known host: so high that whatever else leads there counts before it.
const CLUSTER_METRIC: u32 = 0x7f1a_0000;

/// Of the calling thread's network namespace.
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Where there is no default route to take it from: Ethernet's.
const MTU_DEFAULT: u32 = 1500;

/// This host's network of jobs. All methods take `&self` and may run at the same time.
pub struct Network {
    config: Config,
    mtu: Mtu,
    ip_forward_former: bool,
    wanted: Mutex<Wanted>,
    /// What the kernel has; held while it is changed, so that changes come one after another.
    kernel: tokio::sync::Mutex<Kernel>,
}

/// In bytes.
#[derive(Clone, Copy)]
struct Mtu {
    /// Of the jobs' interfaces.
    jobs: u32,
    /// Of the interface to other hosts: what still fits the underlay when it is wrapped up.
    peers: u32,
}

struct Wanted {
    leases: Leases,
    map: Map,
}

/// `None` after a change that failed or was cancelled half-way.
struct Kernel {
    elements: Option<Elements>,
    hosts: Option<BTreeMap<String, Peer>>,
}

impl Network {
    /// Makes or repairs what the host needs, in the network namespace of the calling thread.
    ///
    /// `leases` are those of the jobs that still run, `map` what was last known of the other hosts. Running jobs keep
    /// their connections.
    pub async fn open(
        config: Config,
        leases: impl IntoIterator<Item = Lease>,
        map: Map,
    ) -> Result<Network, Error> {
        config.validate()?;
        let leases = Leases::new(config.subnet, leases)?;
        let chains = nft::chains().await?;
        let former = match former_ip_forward(&chains, &config.table) {
            Some(former) => former,
            None => read_ip_forward()?,
        };
        let plan = plan::plan(&config, &leases, &map, former);
        let mtu = carry_out(&config, &plan, &leases).await?;
        info!(subnet = %config.subnet, gateway = %plan.gateway, mtu = mtu.jobs, jobs = leases.iter().count(), "network is open");
        Ok(Network {
            config,
            mtu,
            ip_forward_former: former,
            kernel: tokio::sync::Mutex::new(Kernel {
                elements: Some(plan.elements),
                hosts: Some(map.hosts.clone()),
            }),
            wanted: Mutex::new(Wanted { leases, map }),
        })
    }

    /// Puts back what something else on the machine took away: the table (Debian's `nftables.service` flushes every
    /// table when it is restarted), forwarding, the gateway's interface. `true` if anything had to be done.
    ///
    /// Meant to be called every few seconds; looking costs one run of `nft` (4 ms).
    pub async fn repair(&self) -> Result<bool, Error> {
        let mut kernel = self.kernel.lock().await;
        let config = self.config.clone();
        let is_whole = ruleset::is_complete(&self.config, &nft::chains().await?)
            && read_ip_forward()?
            && on_own_thread(move || {
                are_interfaces_there(&config).map_err(Error::kernel("looking for the network's interfaces"))
            })
            .await?;
        if is_whole {
            return Ok(false);
        }
        let (plan, leases, hosts) = {
            let wanted = self.wanted();
            let plan = plan::plan(&self.config, &wanted.leases, &wanted.map, self.ip_forward_former);
            (plan, wanted.leases.clone(), wanted.map.hosts.clone())
        };
        warn!(table = %self.config.table, "the network was damaged from outside and is made anew");
        kernel.elements = None;
        kernel.hosts = None;
        carry_out(&self.config, &plan, &leases).await?;
        kernel.elements = Some(plan.elements);
        kernel.hosts = Some(hosts);
        Ok(true)
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Of the jobs' interfaces, in bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu.jobs
    }

    /// An address for a new job of `app`. Changes nothing on the machine.
    pub fn allocate(&self, app: &str) -> Result<Lease, Error> {
        self.wanted().leases.allocate(app)
    }

    /// Gives back a lease that [`Network::attach`] was never called with; otherwise [`Network::detach`] does it.
    pub fn release(&self, lease: &Lease) -> bool {
        self.wanted().leases.release(lease)
    }

    /// Every lease that is out, by slot.
    pub fn leases(&self) -> Vec<Lease> {
        self.wanted().leases.iter().cloned().collect()
    }

    /// Connects the network namespace of process `pid`, which must not be our own.
    ///
    /// If this fails the lease is still out: try again, or [`Network::detach`] it.
    ///
    /// A job that is attached already is repaired, not disturbed. An unknown lease is taken note of, so that a job
    /// found after a restart can be attached straight away.
    pub async fn attach(&self, pid: u32, lease: &Lease) -> Result<Attached, Error> {
        self.wanted().leases.adopt(lease)?;
        let namespace = Namespace::of(pid)?;
        let job = plan::attachment(&self.config, lease, self.mtu.jobs);
        let (attached, linked) = tokio::join!(
            on_own_thread(move || attach::attach(&namespace, &job)),
            self.update_elements()
        );
        linked?;
        let attached = attached?;
        debug!(slot = lease.slot, address = %lease.address, app = %lease.app, pid, ?attached, "job attached");
        Ok(attached)
    }

    /// Forgets a job that has ended. Its link goes with its namespace; deleting it here would hold up the kernel's
    /// network lock, and with it every job that is being attached, for 20 ms.
    pub async fn detach(&self, lease: &Lease) -> Result<(), Error> {
        self.wanted().leases.release(lease);
        self.update_elements().await
    }

    /// Takes a new map of the other hosts. What stays as it is is not touched.
    pub async fn apply(&self, map: Map) -> Result<(), Error> {
        let problems = map::reachable(&self.config, &map).1;
        let is_news = {
            let mut wanted = self.wanted();
            let is_news = wanted.map.hosts != map.hosts;
            wanted.map = map;
            is_news
        };
        if is_news {
            for problem in problems {
                warn!(problem, "the network between hosts has a gap");
            }
        }
        // A host is let in before it is led to, and shut out after.
        self.update_elements().await?;
        self.update_ways().await
    }

    /// Lets jobs of `from` open connections to jobs of `to`.
    pub async fn allow(&self, from: &str, to: &str) -> Result<(), Error> {
        self.wanted().map.links.insert((from.into(), to.into()));
        self.update_elements().await
    }

    /// Takes [`Network::allow`] back. Connections that are open stay open.
    pub async fn disallow(&self, from: &str, to: &str) -> Result<(), Error> {
        self.wanted().map.links.remove(&(from.into(), to.into()));
        self.update_elements().await
    }

    /// Deletes links under our prefix that belong to no lease, and says which. For after a restart and now and then:
    /// a link is left over only if something holds on to a dead job's namespace.
    pub async fn sweep(&self) -> Result<Vec<String>, Error> {
        let config = self.config.clone();
        let leased: BTreeSet<u32> = self.wanted().leases.iter().map(|lease| lease.slot).collect();
        let swept = on_own_thread(move || delete_job_links(&config, |slot| !leased.contains(&slot))).await?;
        if !swept.is_empty() {
            info!(links = ?swept, "links without a job deleted");
        }
        Ok(swept)
    }

    /// What on this machine keeps jobs from reaching what they should; empty if nothing was found.
    pub async fn diagnose(&self) -> Result<Vec<Finding>, Error> {
        diagnose::diagnose(&self.config).await
    }

    /// Removes everything that a network of this configuration made, and nothing else. Needs no open network.
    pub async fn teardown(config: &Config) -> Result<(), Error> {
        config.validate()?;
        let chains = nft::chains().await?;
        let own = chains
            .iter()
            .filter(|chain| chain.family == "inet" && chain.table == config.table);
        let former = own
            .filter_map(|chain| ruleset::former_ip_forward(&chain.name))
            .next();
        let is_shared = chains
            .iter()
            .any(|chain| chain.table != config.table && ruleset::former_ip_forward(&chain.name).is_some());
        // Forwarding ends before the rules do. Another cluster that still needs it remembers the same former value.
        if let Some(former) = former
            && !is_shared
        {
            write_ip_forward(former)?;
        }
        let owned = config.clone();
        on_own_thread(move || remove_from_host(&owned)).await?;
        let table = &config.table;
        nft::run(
            "removing the table",
            &format!("add table inet {table}\ndelete table inet {table}\n"),
        )
        .await?;
        info!(subnet = %config.subnet, "network is removed");
        Ok(())
    }

    /// Brings the kernel's sets in line with what is wanted *now*, whoever asked first.
    async fn update_elements(&self) -> Result<(), Error> {
        let mut kernel = self.kernel.lock().await;
        let wanted = {
            let wanted = self.wanted();
            elements::elements(&self.config, &wanted.leases, &wanted.map)
        };
        if kernel.elements.as_ref() != Some(&wanted) {
            let script = elements::change(&self.config, kernel.elements.as_ref(), &wanted);
            // Unknown until nft has said that it is done: it may fail, and this future may be dropped meanwhile.
            kernel.elements = None;
            nft::run("changing who may reach whom", &script).await?;
            kernel.elements = Some(wanted);
        }
        Ok(())
    }

    /// The same for the ways to other hosts.
    async fn update_ways(&self) -> Result<(), Error> {
        let Some(underlay) = self.config.underlay.clone() else {
            return Ok(());
        };
        let mut kernel = self.kernel.lock().await;
        let map = self.wanted().map.clone();
        if kernel.hosts.as_ref() != Some(&map.hosts) {
            kernel.hosts = None;
            let (config, mtu) = (self.config.clone(), self.mtu.peers);
            let ways = map::ways(&config, &map);
            on_own_thread(move || peers::carry_out(&config, &underlay, &ways, mtu)).await?;
            info!(hosts = map.hosts.len(), "the other hosts are known");
            kernel.hosts = Some(map.hosts);
        }
        Ok(())
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().expect("nothing panics while it holds this")
    }
}

/// Brings the host in line with a plan. Returns what fits the machine's links.
async fn carry_out(config: &Config, plan: &Plan, leases: &Leases) -> Result<Mtu, Error> {
    let mtu = {
        let (config, plan) = (config.clone(), plan.clone());
        on_own_thread(move || prepare_host(&config, &plan)).await?
    };
    // Rules first, forwarding after: no moment in which the host forwards without them.
    nft::run("making the table", &plan.ruleset).await?;
    write_ip_forward(true)?;
    let jobs: Vec<Attachment> = leases
        .iter()
        .map(|lease| plan::attachment(config, lease, mtu.jobs))
        .collect();
    on_own_thread(move || repair_host_ends(&jobs)).await?;
    if let Some(underlay) = config.underlay.clone() {
        let (config, ways) = (config.clone(), plan.ways.clone());
        on_own_thread(move || peers::carry_out(&config, &underlay, &ways, mtu.peers)).await?;
    }
    Ok(mtu)
}

fn are_interfaces_there(config: &Config) -> std::io::Result<bool> {
    let mut host = Netlink::open()?;
    let is_there = host.link(&config.interface_prefix)?.is_some();
    Ok(is_there && (config.underlay.is_none() || peers::is_there(&mut host, config)?))
}

/// Our own table knows best; else another cluster's, which came before us and changed the setting.
fn former_ip_forward(chains: &[nft::Chain], table: &str) -> Option<bool> {
    let remembered = |is_wanted: &dyn Fn(&nft::Chain) -> bool| {
        chains
            .iter()
            .filter(|chain| is_wanted(chain))
            .find_map(|chain| ruleset::former_ip_forward(&chain.name))
    };
    remembered(&|chain| chain.table == table).or_else(|| remembered(&|_| true))
}

fn read_ip_forward() -> Result<bool, Error> {
    let text = fs::read_to_string(IP_FORWARD).map_err(Error::kernel(format!("reading {IP_FORWARD}")))?;
    Ok(text.trim() != "0")
}

fn write_ip_forward(is_on: bool) -> Result<(), Error> {
    // Writing the same value again would reset settings that hang on it, such as accept_redirects.
    if read_ip_forward()? == is_on {
        return Ok(());
    }
    fs::write(IP_FORWARD, if is_on { "1" } else { "0" })
        .map_err(Error::kernel(format!("writing {IP_FORWARD}")))
}

/// Gateway interface, its address and the subnet's route. Returns what fits the machine's links.
fn prepare_host(config: &Config, plan: &Plan) -> Result<Mtu, Error> {
    let doing = |what: &str| Error::kernel(format!("{what} {}", plan.gateway_interface));
    let mut host = Netlink::open().map_err(doing("opening rtnetlink for"))?;
    let (uses, mtu) = survey(config, &mut host).map_err(Error::kernel("looking at the machine's network"))?;
    if let Some(by) = uses.into_iter().next() {
        return Err(Error::SubnetInUse {
            subnet: config.subnet,
            by,
        });
    }
    let name = &plan.gateway_interface;
    let link = match host.link(name).map_err(doing("looking for"))? {
        Some(link) => link,
        None => {
            create_gateway_interface(&mut host, name).map_err(doing("making"))?;
            let link = host.link(name).map_err(doing("looking for"))?;
            link.ok_or_else(|| doing("looking for")(Errno::ENODEV.into()))?
        }
    };
    let kind = netlink::kind(&link);
    if !matches!(kind, Some(InfoKind::Dummy | InfoKind::Bridge)) {
        let kind = kind
            .map(|kind| kind.to_string())
            .unwrap_or_else(|| "physical".into());
        return Err(Error::InterfaceInUse {
            name: name.clone(),
            kind,
        });
    }
    let answers = host
        .exchange([
            netlink::up_without_ipv6(name),
            netlink::add_address(link.header.index, plan.gateway),
            netlink::add_unreachable(plan.unreachable, 0),
        ])
        .map_err(doing("setting up"))?;
    for answer in answers {
        answer.map_err(doing("setting up"))?;
    }
    if let Some(cluster) = plan.unreachable_cluster {
        host.one(netlink::add_unreachable(cluster, CLUSTER_METRIC))
            .map_err(doing("setting up"))?;
    }
    Ok(mtu)
}

/// A kernel may be built without dummies; a bridge without ports does the same.
fn create_gateway_interface(host: &mut Netlink, name: &str) -> std::io::Result<()> {
    match host.one(netlink::create_link(name, InfoKind::Dummy)) {
        Err(error) if netlink::is(&error, Errno::EOPNOTSUPP) => {
            host.one(netlink::create_link(name, InfoKind::Bridge)).map(drop)
        }
        other => other.map(drop),
    }
}

/// Who else uses our subnet, and what fits the machine's links.
///
/// A wider network around ours (a VPN's 10.0.0.0/8, say) is no conflict: the narrower route, ours, wins.
fn survey(config: &Config, host: &mut Netlink) -> std::io::Result<(Vec<String>, Mtu)> {
    let links = host.links()?;
    let name_of = |index: u32| {
        links
            .iter()
            .find(|link| link.header.index == index)
            .map(netlink::name)
            .unwrap_or("?")
            .to_string()
    };
    let is_ours = |name: &str| {
        name == config.interface_prefix
            || name == config.peer_interface()
            || config.slot_of_interface(name).is_some()
    };
    let mtu_of = |index: u32| {
        let link = links.iter().find(|link| link.header.index == index);
        link.and_then(netlink::mtu)
    };
    let mut uses = Vec::new();
    let mut underlay_mtu = None;
    for address in host.addresses()? {
        let name = name_of(address.header.index);
        if let Some(underlay) = &config.underlay
            && address.attributes.iter().any(|attribute| match attribute {
                AddressAttribute::Local(own) | AddressAttribute::Address(own) => *own == underlay.address,
                _ => false,
            })
        {
            underlay_mtu = mtu_of(address.header.index);
        }
        let local = address.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(std::net::IpAddr::V4(local)) => Some(*local),
            _ => None,
        });
        if let Some(local) = local
            && config.subnet.contains(local)
            && !is_ours(&name)
        {
            uses.push(format!("address {local} of {name}"));
        }
    }
    let mut mtu = None;
    for route in host.routes()? {
        let oif = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let name = oif.map(name_of).unwrap_or_default();
        let destination = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(destination)) => Some(*destination),
            _ => None,
        });
        let prefix = route.header.destination_prefix_length;
        match destination {
            None if prefix == 0 && route.header.address_family == AddressFamily::Inet => {
                mtu = mtu.or(oif.and_then(mtu_of));
            }
            Some(destination) if config.subnet.contains(destination) && prefix >= config.subnet.prefix() => {
                let is_our_unreachable =
                    route.header.kind == RouteType::Unreachable && prefix == config.subnet.prefix();
                if !is_ours(&name) && !is_our_unreachable {
                    uses.push(format!("route {destination}/{prefix} by {name}"));
                }
            }
            _ => {}
        }
    }
    let outside = mtu.unwrap_or(MTU_DEFAULT);
    // What a job sends must fit both ways: as it is to the outside, wrapped up to another host.
    let peers = match &config.underlay {
        Some(underlay) => underlay_mtu
            .unwrap_or(outside)
            .saturating_sub(underlay.overhead()),
        None => outside,
    };
    let jobs = config.mtu.unwrap_or(outside.min(peers));
    Ok((uses, Mtu { jobs, peers }))
}

/// Routes to jobs vanish when the gateway's address does, since they name it as their source.
fn repair_host_ends(jobs: &[Attachment]) -> Result<(), Error> {
    let doing = || Error::kernel("repairing the links of running jobs");
    let mut host = Netlink::open().map_err(doing())?;
    for job in jobs {
        let Some(link) = host.link(&job.host_interface).map_err(doing())? else {
            continue;
        };
        let index = link.header.index;
        let answers = host
            .exchange([
                netlink::set_group(index, job.group),
                netlink::up_without_ipv6(&job.host_interface),
                netlink::route_to_job(index, job.address, job.gateway),
            ])
            .map_err(doing())?;
        for answer in answers {
            match answer {
                // The job ended while we looked.
                Err(error) if netlink::is(&error, Errno::ENODEV) => {}
                other => other.map(drop).map_err(doing())?,
            }
        }
    }
    Ok(())
}

fn delete_job_links(config: &Config, is_unwanted: impl Fn(u32) -> bool) -> Result<Vec<String>, Error> {
    let doing = || Error::kernel("deleting links");
    let mut host = Netlink::open().map_err(doing())?;
    let mut deleted = Vec::new();
    for link in host.links().map_err(doing())? {
        let name = netlink::name(&link);
        if netlink::kind(&link) == Some(InfoKind::Veth)
            && config.slot_of_interface(name).is_some_and(&is_unwanted)
        {
            attach::delete(&mut host, link.header.index).map_err(doing())?;
            deleted.push(name.to_string());
        }
    }
    Ok(deleted)
}

fn remove_from_host(config: &Config) -> Result<(), Error> {
    let doing = || Error::kernel(format!("removing {}", config.interface_prefix));
    delete_job_links(config, |_| true)?;
    let mut host = Netlink::open().map_err(doing())?;
    if let Some(link) = host.link(&config.interface_prefix).map_err(doing())?
        && matches!(netlink::kind(&link), Some(InfoKind::Dummy | InfoKind::Bridge))
    {
        attach::delete(&mut host, link.header.index).map_err(doing())?;
    }
    peers::remove(&mut host, config).map_err(doing())?;
    if let Some(underlay) = &config.underlay {
        remove_unreachable(&mut host, underlay.cluster, CLUSTER_METRIC).map_err(doing())?;
    }
    remove_unreachable(&mut host, config.subnet, 0).map_err(doing())
}

fn remove_unreachable(host: &mut Netlink, subnet: Subnet, metric: u32) -> std::io::Result<()> {
    match host.one(netlink::delete_unreachable(subnet, metric)) {
        Err(error) if netlink::is(&error, Errno::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}
