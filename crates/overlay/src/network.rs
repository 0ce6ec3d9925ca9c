//! Carries plans out: the only place where this crate changes the machine, besides [`crate::attach`].
//!
//! Every operation may be repeated, and each leaves a working state if the process dies in the middle: opening again
//! finishes what was begun.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};

use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::InfoKind;
use nix::errno::Errno;
use tracing::{debug, info, warn};

use crate::attach::{self, Namespace, on_own_thread};
use crate::elements::{self, Elements};
use crate::map::{self, Map};
use crate::netlink::{self, Netlink};
use crate::plan::{self, Attachment, Plan};
use crate::survey::{self, Mtu};
use crate::{
    Attached, Config, Destination, Error, Finding, Former, Lease, Leases, Peer, Prefix6, diagnose,
    forwarding, generation, nft, peers, ruleset,
};

/// Of the route that ends what is for no known host: so high that whatever else leads there counts before it.
const CLUSTER_METRIC: u32 = 0x7f1a_0000;

/// This host's network of jobs. All methods take `&self` and may run at the same time.
pub struct Network {
    config: Config,
    mtu: Mtu,
    former: Former,
    wanted: Mutex<Wanted>,
    /// What the kernel has; held while it is changed, so that changes come one after another.
    kernel: tokio::sync::Mutex<Kernel>,
}

struct Wanted {
    leases: Leases,
    map: Map,
}

/// `None` after a change that failed or was cancelled half-way.
struct Kernel {
    elements: Option<Elements>,
    hosts: Option<BTreeMap<String, Peer>>,
    /// The state of the rules in which the table was last found to be whole.
    whole: Option<u32>,
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
        let config = on_own_thread(move || survey::possible(config)).await?;
        let chains = nft::chains().await?;
        let former = former(&chains, &config)?;
        if config.ipv6.is_none() {
            // As an earlier one of ours may have had it.
            give_back_ipv6(&chains, &config.table)?;
        }
        let plan = plan::plan(&config, &leases, &map, former);
        let mtu = carry_out(&config, &plan, &leases).await?;
        info!(subnet = %config.subnet, gateway = %plan.gateway, mtu = mtu.jobs, jobs = leases.iter().count(), "network is open");
        Ok(Network {
            config,
            mtu,
            former,
            kernel: tokio::sync::Mutex::new(Kernel {
                elements: Some(plan.elements),
                hosts: Some(map.hosts.clone()),
                whole: None,
            }),
            wanted: Mutex::new(Wanted { leases, map }),
        })
    }

    /// Puts back what something else on the machine took away: the table (Debian's `nftables.service` flushes every
    /// table when it is restarted), forwarding, the gateway's interface. `true` if anything had to be done.
    ///
    /// Meant to be called every few seconds; looking costs next to nothing, and one run of `nft` (4 ms) where
    /// anybody has changed rules since.
    pub async fn repair(&self) -> Result<bool, Error> {
        let mut kernel = self.kernel.lock().await;
        let config = self.config.clone();
        // The state first: what is changed while it is looked at is another one.
        let (state, are_interfaces_there) = on_own_thread(move || {
            let are_there = are_interfaces_there(&config);
            let are_there = are_there.map_err(Error::kernel("looking for the network's interfaces"))?;
            Ok((generation::generation().ok(), are_there))
        })
        .await?;
        if state.is_none() || state != kernel.whole {
            let is_whole = ruleset::is_complete(&self.config, &nft::chains().await?);
            kernel.whole = state.filter(|_| is_whole);
            if !is_whole {
                return self.make_anew(kernel).await;
            }
        }
        let forwards = forwarding::ipv4()? && (self.config.ipv6.is_none() || forwarding::ipv6()?);
        match are_interfaces_there && forwards {
            true => Ok(false),
            false => self.make_anew(kernel).await,
        }
    }

    async fn make_anew(&self, mut kernel: tokio::sync::MutexGuard<'_, Kernel>) -> Result<bool, Error> {
        let (plan, leases, hosts) = {
            let wanted = self.wanted();
            let plan = plan::plan(&self.config, &wanted.leases, &wanted.map, self.former);
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
        // Forwarding ends before the rules do.
        if let Some(former) = to_give_back(&chains, &config.table, ruleset::former_ipv4) {
            forwarding::set_ipv4(former)?;
        }
        give_back_ipv6(&chains, &config.table)?;
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
    forwarding::set_ipv4(true)?;
    if plan.ipv6.is_some() {
        forwarding::set_ipv6(true)?;
    }
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

/// What forwarding was before any cluster came.
fn former(chains: &[nft::Chain], config: &Config) -> Result<Former, Error> {
    let ipv4 = remembered(chains, &config.table, ruleset::former_ipv4);
    let ipv6 = match config.ipv6 {
        Some(_) => Some(match remembered(chains, &config.table, ruleset::former_ipv6) {
            Some(former) => former,
            None => forwarding::ipv6()?,
        }),
        None => None,
    };
    Ok(Former {
        ipv4: ipv4.map_or_else(forwarding::ipv4, Ok)?,
        ipv6,
    })
}

/// Our own table knows best; else another cluster's, which came before us and changed the setting.
fn remembered(chains: &[nft::Chain], table: &str, read: fn(&str) -> Option<bool>) -> Option<bool> {
    let among = |is_wanted: &dyn Fn(&nft::Chain) -> bool| {
        chains
            .iter()
            .filter(|chain| is_wanted(chain))
            .find_map(|chain| read(&chain.name))
    };
    among(&|chain| chain.table == table).or_else(|| among(&|_| true))
}

/// What our table remembers, unless another cluster still needs it on: that one remembers the same.
fn to_give_back(chains: &[nft::Chain], table: &str, read: fn(&str) -> Option<bool>) -> Option<bool> {
    let is_own = |chain: &&nft::Chain| chain.family == "inet" && chain.table == table;
    let is_shared = chains
        .iter()
        .any(|chain| chain.table != table && read(&chain.name).is_some());
    let former = chains.iter().filter(is_own).find_map(|chain| read(&chain.name))?;
    (!is_shared).then_some(former)
}

fn give_back_ipv6(chains: &[nft::Chain], table: &str) -> Result<(), Error> {
    match to_give_back(chains, table, ruleset::former_ipv6) {
        Some(former) => forwarding::set_ipv6(former),
        None => Ok(()),
    }
}

/// Gateway interface, its address and the subnet's route. Returns what fits the machine's links.
fn prepare_host(config: &Config, plan: &Plan) -> Result<Mtu, Error> {
    let doing = |what: &str| Error::kernel(format!("{what} {}", plan.gateway_interface));
    let mut host = Netlink::open().map_err(doing("opening rtnetlink for"))?;
    let (uses, mtu) =
        survey::survey(config, &mut host).map_err(Error::kernel("looking at the machine's network"))?;
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
    let index = link.header.index;
    // Of a prefix that we had before.
    for stale in prefixes(&mut host, config, index).map_err(doing("looking at"))? {
        if Some(stale) != plan.ipv6 {
            remove_prefix(&mut host, config, index, stale).map_err(doing("setting up"))?;
        }
    }
    let mut requests = vec![
        netlink::up_without_ipv6(name, survey::MTU_DEFAULT),
        netlink::add_address(index, plan.gateway.into()),
        netlink::add_unreachable(plan.unreachable.into(), 0),
    ];
    requests.extend(
        plan.unreachable_cluster
            .map(|cluster| netlink::add_unreachable(cluster.into(), CLUSTER_METRIC)),
    );
    if let Some(prefix) = plan.ipv6 {
        requests.push(netlink::add_address(index, prefix.address(plan.gateway).into()));
        let unreachable = unreachable6(config, prefix);
        requests
            .extend(unreachable.map(|(destination, metric)| netlink::add_unreachable(destination, metric)));
    }
    let answers = host.exchange_all(requests).map_err(doing("setting up"))?;
    for answer in answers {
        answer.map_err(doing("setting up"))?;
    }
    Ok(mtu)
}

/// Where our packets of IPv6 end if nothing more specific leads on, and how much other routes go before it.
fn unreachable6(config: &Config, prefix: Prefix6) -> impl Iterator<Item = (Destination, u32)> {
    let cluster = config.underlay.as_ref().map(|underlay| underlay.cluster);
    let cluster = cluster.map(|cluster| (prefix.subnet(cluster).into(), CLUSTER_METRIC));
    [(prefix.subnet(config.subnet).into(), 0)]
        .into_iter()
        .chain(cluster)
}

/// What IPv6 addresses of ours the gateway's interface has, by their prefixes.
fn prefixes(host: &mut Netlink, config: &Config, index: u32) -> std::io::Result<Vec<Prefix6>> {
    let gateway = config.subnet.gateway();
    let addresses = host.addresses()?.into_iter();
    let own = addresses.filter(|message| message.header.index == index);
    Ok(own
        .flat_map(|message| message.attributes)
        .filter_map(|attribute| match attribute {
            AddressAttribute::Address(IpAddr::V6(address)) => Prefix6::of(address, gateway),
            _ => None,
        })
        .collect())
}

fn remove_prefix(host: &mut Netlink, config: &Config, index: u32, prefix: Prefix6) -> std::io::Result<()> {
    for (destination, metric) in unreachable6(config, prefix) {
        remove_unreachable(host, destination, metric)?;
    }
    let gateway = prefix.address(config.subnet.gateway());
    match host.one(netlink::remove_address(index, gateway.into())) {
        Err(error) if netlink::is(&error, Errno::EADDRNOTAVAIL) => Ok(()),
        other => other.map(drop),
    }
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

/// Routes to jobs vanish when the gateway's address does, since they name it as their source.
fn repair_host_ends(jobs: &[Attachment]) -> Result<(), Error> {
    let doing = || Error::kernel("repairing the links of running jobs");
    let mut host = Netlink::open().map_err(doing())?;
    for job in jobs {
        let Some(link) = host.link(&job.host_interface).map_err(doing())? else {
            continue;
        };
        let index = link.header.index;
        let mut requests = vec![
            netlink::set_group(index, job.group),
            netlink::up_without_ipv6(&job.host_interface, job.mtu),
            netlink::route_to_job(index, job.address.into(), job.gateway.into()),
        ];
        requests.extend(
            job.ipv6
                .map(|ipv6| netlink::route_to_job(index, ipv6.address.into(), ipv6.gateway.into())),
        );
        let answers = host.exchange_all(requests).map_err(doing())?;
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
        let index = link.header.index;
        // Which they were the kernel knows for sure: the configuration may have changed since.
        for prefix in prefixes(&mut host, config, index).map_err(doing())? {
            remove_prefix(&mut host, config, index, prefix).map_err(doing())?;
        }
        attach::delete(&mut host, index).map_err(doing())?;
    }
    peers::remove(&mut host, config).map_err(doing())?;
    if let Some(underlay) = &config.underlay {
        remove_unreachable(&mut host, underlay.cluster.into(), CLUSTER_METRIC).map_err(doing())?;
    }
    remove_unreachable(&mut host, config.subnet.into(), 0).map_err(doing())
}

fn remove_unreachable(host: &mut Netlink, destination: Destination, metric: u32) -> std::io::Result<()> {
    match host.one(netlink::delete_unreachable(destination, metric)) {
        Err(error) if netlink::is(&error, Errno::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}
