//! The cluster moves to another domain while everything runs.

use anyhow::{Result, ensure};
use e2e::{Cluster, Process, server};

/// What a name is for a job, asked of the name server of its host.
const LOOK_UP: &str = r#"
import socket, sys
for name in sys.argv[1:]:
    try:
        print(socket.gethostbyname(name))
    except OSError as error:
        print(error)
"#;

#[test]
fn a_cluster_answers_to_its_new_domain_at_once_and_to_the_old_one_still() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("hello"))], 1)?;
    ensure!(cluster.page("shop")?.starts_with("hello"));
    let daemon = cluster.pid("daemon")?;
    let router = cluster.pid("router")?;

    // It asks by the old domain and goes on by the new one: with a certificate that the router did not have
    // before, whose pin is in the file of clusters from then on.
    let migrated = cluster.try_flynn(&["cluster", "migrate-domain", "-y", "moved.localhost"])?;
    let said = String::from_utf8_lossy(&migrated.stderr);
    ensure!(
        said.contains("Changed cluster domain from \"flynn.localhost\" to \"moved.localhost\""),
        "{said}"
    );
    let known = cluster.flynn(&["cluster"])?;
    ensure!(known.contains("https://controller.moved.localhost"), "{known}");
    let apps = cluster.flynn(&["apps"])?;
    ensure!(apps.contains("shop"), "{apps}");

    // Apps have a route in the new domain and keep the one that they had.
    for host in ["shop.moved.localhost", "shop.flynn.localhost"] {
        let answer = cluster.wait("the route to be served", || {
            let answer = cluster.request(host, "/")?;
            Ok((answer.status == 200).then_some(answer))
        })?;
        ensure!(answer.text().starts_with("hello"), "{host}: {}", answer.text());
    }
    for host in ["controller.moved.localhost", "controller.flynn.localhost"] {
        ensure!(cluster.request(host, "/ping")?.status == 200, "{host}");
    }
    cluster.flynn(&["create", "-r", "", "later"])?;
    let routes = cluster.flynn(&["-a", "later", "route"])?;
    ensure!(routes.contains("http:later.moved.localhost"), "{routes}");

    // Jobs find both domains at the router of their host.
    let names = ["shop.moved.localhost", "shop.flynn.localhost", "moved.localhost"];
    let mut words = vec!["-a", "shop", "run", "python3", "-c", LOOK_UP];
    words.extend(names);
    let said = cluster.flynn(&words)?;
    let answers: Vec<_> = said.split_whitespace().collect();
    ensure!(answers == ["100.100.0.1"; 3], "{said}");

    // Nothing was restarted for it.
    ensure!(cluster.pid("daemon")? == daemon && cluster.pid("router")? == router);
    cluster.finish()
}
