//! Jobs' other address: who is found by it, and reached.

use anyhow::{Result, ensure};
use e2e::{Cluster, Process, server};

/// What a job of the app sees: who answers by IPv6 under that name.
const LOOK: &str = r#"
import socket, sys
def ask(service):
    try:
        found = socket.getaddrinfo(service + ".discoverd", 8080, socket.AF_INET6, socket.SOCK_STREAM)
    except socket.gaierror:
        return "none"
    said = set()
    for place in found:
        with socket.create_connection(place[4][:2], 10) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
            said.add(connection.makefile().read().splitlines()[-1].split()[0])
    return "%d by %s" % (len(found), ",".join(sorted(said)))
print("six:", ask("six-web"), "four:", ask("four-web"))
try:
    socket.create_connection(("fd00:ec2::254", 80), 10)
except ConnectionRefusedError:
    print("metadata refused")
"#;

#[test]
fn a_job_that_listens_on_ipv6_is_found_and_reached_by_it_and_no_other_is() -> Result<()> {
    let cluster = Cluster::start()?;
    let both = server("both").replace(
        "server = ThreadingHTTPServer((\"0.0.0.0\",",
        "import socket\nThreadingHTTPServer.address_family = socket.AF_INET6\nserver = ThreadingHTTPServer((\"::\",",
    );
    cluster.app("six", &[Process::web(&both)], 2)?;
    cluster.app("four", &[Process::web(&server("four"))], 1)?;
    ensure!(cluster.page("six")?.starts_with("both"));
    ensure!(cluster.page("four")?.starts_with("four"));
    let mut said = String::new();
    let found = cluster.wait("both jobs to be found by IPv6", || {
        said = cluster.flynn(&["-a", "six", "run", "python3", "-c", LOOK])?;
        Ok(said.contains("six: 2 by both").then_some(()))
    });
    ensure!(found.is_ok(), "{said}");
    ensure!(said.contains("four: none"), "{said}");
    ensure!(said.contains("metadata refused"), "{said}");

    // The router's own ports, with the client's address.
    let answer = cluster
        .net
        .within(|| e2e::http::get("[::1]:80", "six.flynn.localhost", "/"))?;
    ensure!(answer.status == 200 && answer.text().starts_with("both"));
    cluster.finish()
}
