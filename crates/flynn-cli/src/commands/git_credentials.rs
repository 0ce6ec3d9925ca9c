//! The answers that git wants from a credential helper: `key=value` lines in, the same out.

use std::io::Read;

use clap::ValueEnum;

use crate::{
    authority,
    config::{Cluster, Config},
    context,
    failure::{Failure, Result},
    output,
};

/// Answer git's questions for credentials
///
/// Git runs this when it pushes to a cluster; `flynn cluster add` has told it to. Only the git
/// servers of the clusters in the configuration are answered for.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ printf 'protocol=https\\nhost=git.flynn.example.com\\n\\n' | flynn git-credentials get
  protocol=https
  host=git.flynn.example.com
  username=user
  password=e09dc5301d72be75")]
pub struct Args {
    operation: Operation,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Operation {
    Get,
    Store,
    Erase,
    Capability,
}

impl Args {
    pub async fn run(self) -> Result<()> {
        // The keys are in the configuration: there is nothing to store or erase.
        let Operation::Get = self.operation else {
            return Ok(());
        };
        let mut question = String::new();
        std::io::stdin()
            .take(64 << 10)
            .read_to_string(&mut question)
            .map_err(|error| Failure::new(format!("git's question cannot be read: {error}")))?;
        let clusters = Config::load()?.clusters;
        let Some(cluster) = asked_for(&question, &clusters) else {
            return Ok(());
        };
        output::print(&answer(cluster));
        // Some use git and nothing else.
        if let Ok(controller) = context::connect(cluster) {
            authority::keep_fresh(cluster, &controller).await;
        }
        Ok(())
    }
}

/// The cluster whose git server git asks about.
fn asked_for<'a>(question: &str, clusters: &'a [Cluster]) -> Option<&'a Cluster> {
    let field = |name: &str| {
        question
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    };
    let asked = format!("{}://{}", field("protocol")?, field("host")?);
    clusters.iter().find(|cluster| origin(&cluster.git_url) == asked)
}

fn answer(cluster: &Cluster) -> String {
    let (protocol, host) = origin(&cluster.git_url).split_once("://").unwrap_or_default();
    format!(
        "protocol={protocol}\nhost={host}\nusername=user\npassword={}\n",
        cluster.key
    )
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    url[start..].find('/').map_or(url, |end| &url[..start + end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(question: &str, expected: &str) {
        let cluster = Cluster {
            key: "secret".into(),
            git_url: "https://git.x.test:8443".into(),
            ..Cluster::default()
        };
        let unset = Cluster {
            key: "other".into(),
            ..Cluster::default()
        };
        let clusters = [unset, cluster];
        let answered = asked_for(question, &clusters).map(answer).unwrap_or_default();
        assert_eq!(answered, expected, "{question}");
    }

    #[test]
    fn only_the_clusters_own_git_server_is_answered_for() {
        check(
            "protocol=https\nhost=git.x.test:8443\npath=a.git\n\n",
            "protocol=https\nhost=git.x.test:8443\nusername=user\npassword=secret\n",
        );
        for other in [
            "protocol=https\nhost=git.x.test\n",
            "protocol=http\nhost=git.x.test:8443\n",
            "protocol=https\nhost=evil.test\n",
            "protocol=https\n",
            "host=git.x.test:8443\n",
            "",
        ] {
            check(other, "");
        }
    }
}
