//! Runs `nft`. About 4 ms a call, so never once per job.

use std::process::Stdio;

use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::Error;

/// A base chain has hook and policy, a regular one has neither.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Chain {
    pub family: String,
    pub table: String,
    pub name: String,
    #[serde(default)]
    pub hook: Option<String>,
    #[serde(default)]
    pub policy: Option<String>,
}

/// Carries out a script as one transaction: all of it or nothing.
pub(crate) async fn run(doing: &str, script: &str) -> Result<(), Error> {
    call(doing, &["-f", "-"], script).await.map(drop)
}

/// All chains of all tables in this network namespace.
pub(crate) async fn chains() -> Result<Vec<Chain>, Error> {
    let doing = "listing the chains";
    let text = call(doing, &["-j", "list", "chains"], "").await?;
    parse_chains(&text).map_err(|error| Error::Nft {
        doing: doing.into(),
        message: error.to_string(),
    })
}

fn parse_chains(text: &str) -> serde_json::Result<Vec<Chain>> {
    #[derive(Deserialize)]
    struct Listing {
        nftables: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        chain: Option<Chain>,
    }
    Ok(serde_json::from_str::<Listing>(text)?
        .nftables
        .into_iter()
        .filter_map(|item| item.chain)
        .collect())
}

async fn call(doing: &str, arguments: &[&str], input: &str) -> Result<String, Error> {
    let failed = |message: String| Error::Nft {
        doing: doing.into(),
        message,
    };
    // nft lives in sbin, which the PATH of a service may lack.
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".into())
    );
    let mut child = Command::new("nft")
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("cannot be started: {error}")))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // nft reads all of its input before it prints, so writing first cannot block on its output. A write that fails
    // means that it gave up early; its own words on stderr say why.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = child
        .wait_with_output()
        .await
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_string()));
    }
    String::from_utf8(output.stdout).map_err(|_| failed("its output is not text".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_chains_and_regular_chains_are_read() {
        let text = r#"{"nftables": [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter",
                       "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "t", "name": "refuse", "handle": 2}}]}"#;
        let chains = parse_chains(text).unwrap();
        assert_eq!(chains.len(), 2);
        assert_eq!(
            (chains[0].hook.as_deref(), chains[0].policy.as_deref()),
            (Some("forward"), Some("drop"))
        );
        assert_eq!((chains[1].name.as_str(), &chains[1].hook), ("refuse", &None));
    }
}
