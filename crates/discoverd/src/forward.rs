//! Asks the machine's own resolvers, with the query as it came.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long one resolver may take before the next is asked.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The resolvers that the machine is configured with, read again when the file changes.
#[derive(Default)]
pub struct Resolvers {
    known: Mutex<(Option<SystemTime>, Vec<IpAddr>)>,
}

impl Resolvers {
    /// The first answer of any resolver, in their order.
    pub async fn ask(&self, query: &[u8], is_tcp: bool) -> Option<Vec<u8>> {
        for resolver in self.addresses() {
            let place = SocketAddr::new(resolver, 53);
            let asked = async {
                if is_tcp {
                    over_tcp(place, query).await
                } else {
                    over_udp(place, query).await
                }
            };
            match tokio::time::timeout(TIMEOUT, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "resolver failed"),
                Err(_) => tracing::debug!(%resolver, "resolver did not answer"),
            }
        }
        None
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let modified = std::fs::metadata(RESOLV_CONF)
            .and_then(|meta| meta.modified())
            .ok();
        let mut known = self.known.lock().expect("no panic while held");
        if known.0 != modified || known.1.is_empty() {
            *known = (
                modified,
                nameservers(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default()),
            );
        }
        known.1.clone()
    }
}

/// The name servers of a resolv.conf; without any, this machine's own, as resolv.conf(5) says.
fn nameservers(text: &str) -> Vec<IpAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next())??;
        // A zone (`fe80::1%eth0`) cannot be used here.
        address.parse().ok()
    });
    let found: Vec<_> = addresses.take(3).collect();
    if found.is_empty() {
        vec![Ipv4Addr::LOCALHOST.into()]
    } else {
        found
    }
}

/// From a port of its own for each query, so that answers are hard to forge.
async fn over_udp(resolver: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if resolver.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(query).await?;
    let mut answer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut answer).await?;
        // The id must be the query's; what is not an answer to it is ignored.
        if length >= 12 && answer[..2] == query[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn over_tcp(resolver: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let mut framed = (query.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_the_c_library_reads_them() {
        let text =
            "# by hand\nsearch example.com\nnameserver 10.0.0.53\nnameserver fe80::1%eth0\nnameserver ::1\n";
        assert_eq!(
            nameservers(text),
            ["10.0.0.53".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]
        );
        assert_eq!(nameservers(""), [IpAddr::from(Ipv4Addr::LOCALHOST)]);
    }
}
