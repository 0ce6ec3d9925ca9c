//! Ties one job to the network: a veth pair, and the job's side of it configured from within.
//!
//! All of it happens on a thread of its own that ends afterwards. The thread enters the job's network namespace and
//! never leaves it, so no thread of the async runtime can be left behind in there. Its socket to the host was opened
//! before and goes on working on the host.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use netlink_packet_route::link::LinkMessage;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use crate::Error;
use crate::map::Mac;
use crate::netlink::{self, Netlink};
use crate::plan::Attachment;

/// What [`crate::Network::attach`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    New,
    /// The link was there already, for example from before the daemon's restart; what was missing was repaired.
    Already,
}

/// The network namespace of a job. Holding it keeps the namespace (and its number) from being reused.
pub(crate) struct Namespace {
    file: File,
    pid: u32,
}

impl Namespace {
    /// Refuses the namespace of the calling thread: configuring that one would cut the host off.
    pub(crate) fn of(pid: u32) -> Result<Namespace, Error> {
        let path = format!("/proc/{pid}/ns/net");
        let file = File::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NamespaceGone { pid },
            _ if netlink::is(&source, Errno::ESRCH) => Error::NamespaceGone { pid },
            _ => Error::Kernel {
                doing: format!("opening {path}"),
                source,
            },
        })?;
        let identity = |file: &File| file.metadata().map(|data| (data.dev(), data.ino()));
        let own = File::open("/proc/thread-self/ns/net").and_then(|own| identity(&own));
        let own = own.map_err(Error::kernel("looking at our own network namespace"))?;
        if identity(&file).map_err(Error::kernel(format!("looking at {path}")))? == own {
            return Err(Error::NotIsolated { pid });
        }
        Ok(Namespace { file, pid })
    }
}

/// Runs blocking work on a fresh thread, which is in the network namespace of the caller to begin with.
pub(crate) async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("overlay".into())
        .spawn(move || {
            // The receiver is gone if the caller was cancelled; the work is done all the same and is idempotent.
            let _ = sender.send(work());
        })
        .map_err(Error::kernel("starting a thread"))?;
    receiver.await.expect("the thread answers unless it panics")
}

/// Blocking; must run on a thread that ends afterwards.
pub(crate) fn attach(namespace: &Namespace, job: &Attachment) -> Result<Attached, Error> {
    let failed = |what: &'static str| Error::kernel(format!("{what} for {}", job.host_interface));
    let mut host = Netlink::open().map_err(failed("opening rtnetlink"))?;
    setns(&namespace.file, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| failed("entering the network namespace")(errno.into()))?;
    let mut inside = Netlink::open().map_err(failed("opening rtnetlink inside"))?;

    let (link, attached) = match create(&mut host, namespace, job)? {
        Some(link) => (link, Attached::New),
        None => match present(&mut host, &mut inside, job).map_err(failed("looking at the link"))? {
            Present::Ours(link) => (link, Attached::Already),
            // The end of a job that is gone, whose namespace the kernel has not yet taken down.
            Present::Leftover(link) => {
                delete(&mut host, link.header.index).map_err(failed("deleting the old link"))?;
                let link = create(&mut host, namespace, job)?.ok_or_else(|| occupied(namespace, job))?;
                (link, Attached::New)
            }
            Present::Absent => return Err(occupied(namespace, job)),
        },
    };
    let index = link.header.index;
    let configured =
        configure(&mut host, &mut inside, &link, job, attached).and_then(|()| settle_namespace(job));
    if configured.is_err() && attached == Attached::New {
        // Half a link is of no use; the error that led here says more than one of this would.
        let _ = delete(&mut host, index);
    }
    configured.map_err(failed("configuring the link"))?;
    Ok(attached)
}

/// `None` if a link of that name is there already, on the host or inside.
fn create(host: &mut Netlink, namespace: &Namespace, job: &Attachment) -> Result<Option<LinkMessage>, Error> {
    let doing = || format!("making {}", job.host_interface);
    let [created, up, link] = host
        .exchange([
            netlink::create_veth(job, namespace.file.as_fd()),
            netlink::up_without_ipv6(&job.host_interface, job.mtu),
            netlink::get_link(&job.host_interface),
        ])
        .map_err(Error::kernel(doing()))?;
    match created {
        Err(error) if netlink::is(&error, Errno::EEXIST) => return Ok(None),
        Err(error) => return Err(Error::kernel(doing())(error)),
        Ok(_) => {}
    }
    up.map_err(Error::kernel(doing()))?;
    let link = netlink::into_link(link).map_err(Error::kernel(doing()))?;
    link.map(Some)
        .ok_or_else(|| Error::kernel(doing())(Errno::ENODEV.into()))
}

enum Present {
    /// The other end is this job's.
    Ours(LinkMessage),
    /// The other end is elsewhere.
    Leftover(LinkMessage),
    Absent,
}

fn present(host: &mut Netlink, inside: &mut Netlink, job: &Attachment) -> io::Result<Present> {
    let Some(link) = host.link(&job.host_interface)? else {
        return Ok(Present::Absent);
    };
    let is_ours = inside.link(job.job_interface)?.is_some_and(|peer| {
        netlink::peer_index(&peer) == Some(link.header.index)
            && netlink::peer_index(&link) == Some(peer.header.index)
    });
    Ok(if is_ours {
        Present::Ours(link)
    } else {
        Present::Leftover(link)
    })
}

fn configure(
    host: &mut Netlink,
    inside: &mut Netlink,
    link: &LinkMessage,
    job: &Attachment,
    attached: Attached,
) -> io::Result<()> {
    let index = link.header.index;
    let inner_link = inside.link(job.job_interface)?.ok_or(Errno::ENODEV)?;
    let inner = inner_link.header.index;
    let mut outer_requests = Vec::new();
    if attached == Attached::Already {
        outer_requests.push(netlink::set_group(index, job.group));
        outer_requests.push(netlink::set_mtu(index, job.mtu));
    }
    outer_requests.push(netlink::route_to_job(
        index,
        job.address.into(),
        job.gateway.into(),
    ));
    let mut inner_requests = vec![
        netlink::up(netlink::LOOPBACK_INDEX),
        netlink::set_mtu(inner, job.mtu),
    ];
    inner_requests.extend(job.ipv6.map(|_| netlink::without_ipv6(inner)));
    inner_requests.push(netlink::up(inner));
    inner_requests.push(netlink::add_address(inner, job.address.into()));
    inner_requests.extend(netlink::routes_of_job(inner, job.gateway.into()));
    if let Some(ipv6) = &job.ipv6 {
        let (inner_mac, outer_mac) = (mac_of(&inner_link)?, mac_of(link)?);
        outer_requests.push(netlink::put_neighbour(index, ipv6.address.into(), inner_mac));
        outer_requests.push(netlink::route_to_job(
            index,
            ipv6.address.into(),
            ipv6.gateway.into(),
        ));
        inner_requests.push(netlink::add_address(inner, ipv6.address.into()));
        inner_requests.push(netlink::put_neighbour(inner, ipv6.gateway.into(), outer_mac));
        inner_requests.extend(netlink::routes_of_job(inner, ipv6.gateway.into()));
    }
    all(host.exchange_all(outer_requests)?)?;
    all(inside.exchange_all(inner_requests)?)
}

fn mac_of(link: &LinkMessage) -> io::Result<Mac> {
    let mac = netlink::hardware_address(link).and_then(|mac| mac.try_into().ok());
    mac.ok_or_else(|| Errno::EADDRNOTAVAIL.into())
}

/// Lets a job without capabilities listen on port 80 and use `ping`, as Docker does: the namespace is its own, so neither
/// takes anything from others. `/proc/sys/net` shows the namespace of the thread that looks.
///
/// Its addresses and routes are those that it was given: no router is believed.
fn settle_namespace(job: &Attachment) -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
    if job.ipv6.is_some() {
        let interface = job.job_interface;
        fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/accept_ra"), "0")?;
    }
    Ok(())
}

/// Gone already is as good as deleted.
pub(crate) fn delete(host: &mut Netlink, index: u32) -> io::Result<()> {
    match host.one(netlink::delete_link(index)) {
        Err(error) if netlink::is(&error, Errno::ENODEV) => Ok(()),
        other => other.map(drop),
    }
}

fn all(answers: Vec<netlink::Answer>) -> io::Result<()> {
    answers.into_iter().try_for_each(|answer| answer.map(drop))
}

fn occupied(namespace: &Namespace, job: &Attachment) -> Error {
    Error::NamespaceOccupied {
        pid: namespace.pid,
        name: job.job_interface.into(),
        address: job.address,
    }
}
