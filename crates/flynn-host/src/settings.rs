//! `flynn-host copies` and `flynn-host bucket`: what operators choose for the whole cluster.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use api::{
    client::Method,
    contents::Copies,
    objects::{BucketStatus, BucketView},
    peers::Part,
};
use clap::{Args, Subcommand};
use types::{Bucket, Host, HostState, Timestamp};

use crate::{
    cluster::told,
    config::Config,
    format::{ago, table},
    host_client,
};

const COPIES_PATH: &str = "/internal/cluster/copies";
const BUCKET_PATH: &str = "/internal/cluster/bucket";

#[derive(Args)]
pub struct BucketArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<BucketCommand>,
}

#[derive(Subcommand)]
enum BucketCommand {
    /// Give the cluster a bucket, or another one
    ///
    /// It has to exist, and to be for this cluster alone, with its prefix. The key has to be allowed to list it, and to
    /// read, write and delete objects. It is tried before it is taken.
    Set(Wish),
    /// Go on without a bucket; what is in it stays there
    Remove,
}

#[derive(Args)]
struct Wish {
    /// s3://BUCKET or s3://BUCKET/PREFIX
    url: String,
    /// Where the object store is; AWS where it is left out
    #[arg(long, value_name = "URL", env = "AWS_ENDPOINT_URL")]
    endpoint: Option<String>,
    #[arg(long, env = "AWS_REGION", default_value = "us-east-1")]
    region: String,
    #[arg(long, value_name = "ID", env = "AWS_ACCESS_KEY_ID")]
    access_key_id: String,
    /// A file with the secret; AWS_SECRET_ACCESS_KEY in the environment where it is left out
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Whether the bucket's name comes behind the endpoint (path), or before it (host), as AWS has it
    #[arg(long, value_parser = ["path", "host"])]
    style: Option<String>,
}

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

pub async fn bucket(config: &Config, args: BucketArgs) -> Result<()> {
    let controller = host_client::controller(config)?;
    match args.command {
        None => show(config, args.json).await,
        Some(BucketCommand::Set(wish)) => {
            let wish = wish.bucket(std::env::var("AWS_SECRET_ACCESS_KEY").ok())?;
            let set: BucketView = controller.client().put(BUCKET_PATH, &wish).await.map_err(told)?;
            println!(
                "The cluster keeps layers, images and repositories in {}, too.",
                set.url
            );
            Ok(())
        }
        Some(BucketCommand::Remove) => {
            let client = controller.client();
            client
                .send(Method::DELETE, BUCKET_PATH, None::<&()>)
                .await
                .map_err(told)?;
            println!("The cluster has no bucket any more. What is in it stays there.");
            Ok(())
        }
    }
}

impl Wish {
    fn bucket(self, secret: Option<String>) -> Result<Bucket> {
        let place = self.url.strip_prefix("s3://").with_context(|| {
            format!(
                "{:?} is no bucket\nhint: write it as s3://BUCKET or s3://BUCKET/PREFIX",
                self.url
            )
        })?;
        let (name, prefix) = place.split_once('/').unwrap_or((place, ""));
        let secret = match &self.secret_file {
            Some(file) => {
                let text = std::fs::read_to_string(file);
                Some(text.with_context(|| format!("cannot read {}", file.display()))?)
            }
            None => secret,
        };
        let secret = secret.context(
            "the secret of the access key is missing\nhint: set AWS_SECRET_ACCESS_KEY, or give --secret-file FILE",
        )?;
        Ok(Bucket {
            name: name.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            path_style: match self.style.as_deref() {
                Some(style) => style == "path",
                // Who is no AWS rarely has names for buckets.
                None => self.endpoint.is_some(),
            },
            endpoint: match self.endpoint {
                Some(endpoint) if endpoint.contains("://") => endpoint,
                Some(endpoint) => bail!("{endpoint:?} is no endpoint\nhint: write it as https://HOST"),
                None => format!("https://s3.{}.amazonaws.com", self.region),
            },
            region: self.region,
            access_key_id: self.access_key_id,
            secret_access_key: secret.trim().to_owned(),
        })
    }
}

/// `flynn-host status`, with how this host gets on with the cluster's bucket.
pub async fn status(config: &Config, json: bool) -> Result<()> {
    crate::cluster::status(config, json).await?;
    if json {
        return Ok(());
    }
    let controller = host_client::controller(config)?;
    // A host of a version that knows no buckets has none.
    let status = controller
        .client()
        .get::<Option<BucketStatus>>("/internal/here/bucket")
        .await;
    if let Some(status) = status.ok().flatten() {
        println!(
            "\nbucket {} {}",
            status.bucket.url,
            told_of(&status, daemon::now())
        );
    }
    Ok(())
}

/// How each host gets on with it; each tries it anew.
async fn show(config: &Config, json: bool) -> Result<()> {
    let controller = host_client::controller(config)?;
    let hosts: Vec<Host> = controller.client().get("/hosts").await.map_err(told)?;
    let mut rows = vec![];
    for host in hosts.iter().filter(|host| host.state == HostState::Up) {
        let client = host_client::part_of(config, host, Part::Controller)?;
        let status: Option<BucketStatus> = client.get("/internal/here/bucket").await.map_err(told)?;
        let Some(status) = status else {
            println!(
                "{}",
                if json {
                    "null"
                } else {
                    "The cluster has no bucket.\nhint: `flynn-host bucket set` gives it one"
                }
            );
            return Ok(());
        };
        rows.push((host.id.to_string(), status));
    }
    if json {
        let rows: std::collections::BTreeMap<_, _> = rows.into_iter().collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    print!("{}", shown(&rows, daemon::now()));
    Ok(())
}

fn shown(rows: &[(String, BucketStatus)], now: Timestamp) -> String {
    let Some((_, BucketStatus { bucket, .. })) = rows.first() else {
        return "no host is up that could try it\n".into();
    };
    let mut text = format!(
        "{} at {}, region {}, access key {}\n\n",
        bucket.url, bucket.endpoint, bucket.region, bucket.access_key_id
    );
    let mut cells = vec![vec!["HOST".to_owned(), "BUCKET".into()]];
    cells.extend(
        rows.iter()
            .map(|(host, status)| vec![host.clone(), told_of(status, now)]),
    );
    text.push_str(&table(&cells));
    text
}

/// `works; 3 layers are still to be brought`
pub fn told_of(status: &BucketStatus, now: Timestamp) -> String {
    let mut text = match (&status.error, status.error_since) {
        (None, _) => "works".to_owned(),
        (Some(error), Some(since)) => format!("does not work ({}): {error}", ago(since, now)),
        (Some(error), None) => format!("does not work: {error}"),
    };
    let waiting = status.waiting.iter().filter(|(_, count)| **count > 0);
    let waiting: Vec<_> = waiting.map(|(kind, count)| format!("{count} {kind}")).collect();
    if !waiting.is_empty() {
        text.push_str(&format!("; still to be brought: {}", waiting.join(", ")));
    }
    if !status.hint.is_empty() {
        text.push_str(&format!(" (hint: {})", status.hint));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(url: &str, endpoint: Option<&str>) -> Wish {
        Wish {
            url: url.into(),
            endpoint: endpoint.map(str::to_owned),
            region: "eu-central-1".into(),
            access_key_id: "AKIA".into(),
            secret_file: None,
            style: None,
        }
    }

    #[test]
    fn a_bucket_is_aws_or_at_an_endpoint() {
        let check = |wish: Wish, expected: &str| {
            let told = match wish.bucket(Some("secret\n".into())) {
                Ok(bucket) => {
                    assert_eq!(bucket.secret_access_key, "secret");
                    let style = if bucket.path_style { "path" } else { "host" };
                    format!("{} {} {style}", bucket.url(), bucket.endpoint)
                }
                Err(error) => error.to_string(),
            };
            assert_eq!(told, expected);
        };
        check(
            wish("s3://b", None),
            "s3://b https://s3.eu-central-1.amazonaws.com host",
        );
        check(
            wish("s3://b/x/y/", Some("http://127.0.0.1:9000")),
            "s3://b/x/y http://127.0.0.1:9000 path",
        );
        check(
            wish("b", None),
            "\"b\" is no bucket\nhint: write it as s3://BUCKET or s3://BUCKET/PREFIX",
        );
        check(
            wish("s3://b", Some("minio:9000")),
            "\"minio:9000\" is no endpoint\nhint: write it as https://HOST",
        );
        assert!(
            wish("s3://b", None)
                .bucket(None)
                .unwrap_err()
                .to_string()
                .contains("AWS_SECRET_ACCESS_KEY")
        );
    }

    #[test]
    fn each_host_says_how_it_gets_on() {
        let bucket = wish("s3://b/x", None).bucket(Some("very secret".into())).unwrap();
        let works = BucketStatus {
            bucket: BucketView::from(&bucket),
            error: None,
            hint: String::new(),
            error_since: None,
            waiting: [("images".to_owned(), 0), ("layers".to_owned(), 3)].into(),
        };
        let fails = BucketStatus {
            error: Some("the object store cannot be reached".into()),
            hint: "is it up?".into(),
            error_since: Some(Timestamp::EPOCH),
            waiting: Default::default(),
            ..works.clone()
        };
        let text = shown(
            &[("a".into(), works), ("b".into(), fails)],
            Timestamp::from_micros(5_000_000),
        );
        assert_eq!(
            text,
            "s3://b/x at https://s3.eu-central-1.amazonaws.com, region eu-central-1, access key AKIA\n\n\
             HOST  BUCKET\n\
             a     works; still to be brought: 3 layers\n\
             b     does not work (5 seconds ago): the object store cannot be reached (hint: is it up?)\n"
        );
    }
}
