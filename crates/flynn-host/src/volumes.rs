//! `flynn-host volume`: the volumes of all hosts, for operators.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use api::{Client, ClientError, host::VolumeInfo};
use clap::Subcommand;
use types::{Host, Volume, VolumeId, VolumeState};

use crate::{
    config::Config,
    format::{ago, table},
    host_client,
};

#[derive(Subcommand)]
pub enum Command {
    /// Display a list of all volumes of known Flynn hosts
    ///
    /// Example:
    ///   $ flynn-host volume list
    #[command(verbatim_doc_comment)]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Create a data volume on a host
    ///
    /// Example:
    ///   $ flynn-host volume create --provider default host0
    #[command(verbatim_doc_comment)]
    Create {
        /// Where it is made
        #[arg(long, default_value = "default")]
        provider: String,
        host: String,
    },
    /// Delete volumes, destroying any data stored on them
    ///
    /// Example:
    ///   $ flynn-host volume delete 102fad07-07a3-4841-bded-d9e8a3eedbd6
    #[command(verbatim_doc_comment, visible_alias = "destroy")]
    Delete {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
    /// Delete volumes that nothing can use any more: decommissioned ones without a job, and those that
    /// the cluster does not know
    ///
    /// Example:
    ///   $ flynn-host volume gc
    #[command(verbatim_doc_comment)]
    Gc,
}

pub async fn run(config: &Config, command: Command) -> Result<()> {
    match command {
        Command::List { json } => list(config, json).await,
        Command::Create { provider, host } => create(config, &provider, &host).await,
        Command::Delete { ids } => delete(config, &ids).await,
        Command::Gc => gc(config).await,
    }
}

async fn list(config: &Config, json: bool) -> Result<()> {
    let mut found = volumes(config).await?;
    found.sort_by_key(|(_, volume)| std::cmp::Reverse((volume.created_at, volume.id)));
    if json {
        let all: Vec<_> = found.into_iter().map(|(_, volume)| volume).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let mut rows = vec![
        ["ID", "TYPE", "HOST", "CREATED", "META"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (host, volume) in found {
        let meta: Vec<_> = volume
            .meta
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        rows.push(vec![
            volume.id.to_string(),
            volume.kind.as_str().to_owned(),
            host.id.to_string(),
            ago(volume.created_at, daemon::now()),
            meta.join(" "),
        ]);
    }
    print!("{}", table(&rows));
    Ok(())
}

async fn create(config: &Config, provider: &str, host: &str) -> Result<()> {
    let hosts = hosts(config).await?;
    let found = hosts.iter().find(|found| found.id.as_str() == host);
    let found = found.with_context(|| {
        format!("there is no host {host}\nhint: `flynn-host list` lists the cluster's hosts")
    })?;
    let path = format!("/storage/providers/{}/volumes", api::client::escape(provider));
    let made: Result<VolumeInfo, ClientError> =
        client(config, found)?.post(&path, &serde_json::json!({})).await;
    match made {
        Ok(volume) => println!("created data volume {} on {host}", volume.id),
        Err(error) if error.is_not_found() => {
            bail!("host {host} has no volume provider {provider}\nhint: the one there is, is called default")
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

async fn delete(config: &Config, ids: &[String]) -> Result<()> {
    let on: BTreeMap<String, Host> = volumes(config)
        .await?
        .into_iter()
        .map(|(host, volume)| (volume.id.to_string(), host))
        .collect();
    let mut failed = 0;
    for id in ids {
        let deleted = match on.get(id) {
            Some(host) => remove(config, host, id).await,
            None => Err(anyhow::anyhow!("no host has it")),
        };
        match deleted {
            Ok(()) => println!("{id} deleted"),
            Err(error) => {
                failed += 1;
                eprintln!("error: could not delete volume {id}: {error:#}");
            }
        }
    }
    if failed > 0 {
        bail!(
            "could not delete all volumes\nhint: `flynn-host volume list` lists them; what a job has cannot go"
        );
    }
    Ok(())
}

async fn gc(config: &Config) -> Result<()> {
    // What is on disk first: a volume is a row before it is a directory.
    let on_disk = volumes(config).await?;
    let rows = host_client::controller(config)?.volumes().await?;
    let unused = unused(on_disk.iter().map(|(_, volume)| volume.id), &rows);
    for (host, volume) in on_disk.iter().filter(|(_, volume)| unused.contains(&volume.id)) {
        remove(config, host, &volume.id.to_string()).await?;
        println!("{} deleted", volume.id);
    }
    Ok(())
}

/// The original's collection took everything that was not attached just then.
fn unused(on_disk: impl Iterator<Item = VolumeId>, rows: &[Volume]) -> BTreeSet<VolumeId> {
    let is_kept = |row: &&Volume| {
        row.state != VolumeState::Destroyed && (row.decommissioned_at.is_none() || row.job.is_some())
    };
    let kept: BTreeSet<VolumeId> = rows.iter().filter(is_kept).map(|row| row.id).collect();
    on_disk.filter(|id| !kept.contains(id)).collect()
}

async fn remove(config: &Config, host: &Host, id: &str) -> Result<()> {
    let path = format!("/storage/volumes/{}", api::client::escape(id));
    Ok(client(config, host)?.delete(&path).await?)
}

async fn volumes(config: &Config) -> Result<Vec<(Host, VolumeInfo)>> {
    let mut found = Vec::new();
    for host in hosts(config).await? {
        let of_host: Vec<VolumeInfo> = client(config, &host)?.get("/storage/volumes").await?;
        found.extend(of_host.into_iter().map(|volume| (host.clone(), volume)));
    }
    Ok(found)
}

async fn hosts(config: &Config) -> Result<Vec<Host>> {
    Ok(host_client::controller(config)?.client().get("/hosts").await?)
}

fn client(config: &Config, host: &Host) -> Result<Client> {
    host_client::host_of(config, host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nothing_can_use_is_collected() {
        let id = |n: u128| VolumeId(types::Uuid::from_u128(n));
        let row = |n: u128, more: serde_json::Value| -> Volume {
            let mut row = serde_json::json!({
                "id": id(n), "host_id": "host0", "type": "data", "state": "created",
                "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
            });
            row.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            serde_json::from_value(row).unwrap()
        };
        let gone = "2026-01-02T00:00:00Z";
        let rows = [
            row(1, serde_json::json!({})),
            row(2, serde_json::json!({"decommissioned_at": gone})),
            row(
                3,
                serde_json::json!({"decommissioned_at": gone, "job": types::Uuid::nil()}),
            ),
            row(4, serde_json::json!({"state": "destroyed"})),
        ];
        let found = unused((1..=5).map(id), &rows);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [id(2), id(4), id(5)]);
    }
}
