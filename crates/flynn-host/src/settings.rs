//! `flynn-host copies`: what operators choose for the whole cluster.

use anyhow::Result;
use api::contents::Copies;

use crate::{cluster::told, config::Config, host_client};

const COPIES_PATH: &str = "/internal/cluster/copies";

/// Shows how many hosts keep each image and repository, or sets it.
pub async fn copies(config: &Config, copies: Option<u32>) -> Result<()> {
    let controller = host_client::controller(config)?;
    let client = controller.client();
    let now: Copies = match copies {
        Some(copies) => client.put(COPIES_PATH, &Copies { copies }).await.map_err(told)?,
        None => client.get(COPIES_PATH).await.map_err(told)?,
    };
    let hosts = match now.copies {
        1 => "1 host".to_owned(),
        copies => format!("{copies} hosts"),
    };
    println!("Each layer, image and repository is kept by {hosts}.");
    Ok(())
}
