//! Becoming a member: what a host that has only a token says and believes.
//!
//! A token holds the pin of the cluster's authority beside its secret, so the joiner knows whom it
//! speaks to before it says anything; the cluster knows by the secret that the joiner was asked in.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use api::{
    ClientError,
    peers::{Connection, Dial, JoinRequest, Joined},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use daemon::{StateDir, files};
use futures::{FutureExt, future::BoxFuture};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsConnector;
use types::HostId;

use crate::{dial, identity::HTTP, identity::name_of_any, membership::Membership};

/// More than clocks of machines that set them by the network differ.
const SKEW_TOLD: Duration = Duration::from_secs(60);
const ANSWER_MAX: Duration = Duration::from_secs(30);
const PIN_BYTES: usize = 32;
const SECRET_BYTES: usize = 16;

/// `flynn-…`, as an operator carries it from one machine to another.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the authority's certificate.
    pub pin: [u8; PIN_BYTES],
    pub secret: String,
}

impl Token {
    /// A new secret for the cluster whose authority this is (PEM).
    pub fn new(ca_cert: &str, secret: &str) -> Result<Token> {
        use rustls::pki_types::pem::PemObject;
        let certificate = CertificateDer::from_pem_slice(ca_cert.as_bytes());
        let certificate =
            certificate.map_err(|error| anyhow::anyhow!("the authority cannot be read: {error}"))?;
        Ok(Token {
            pin: Sha256::digest(&certificate).into(),
            secret: secret.to_owned(),
        })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.pin[..], self.secret.as_bytes()].concat();
        write!(f, "flynn-{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Token> {
        let malformed = || {
            anyhow::anyhow!(
                "this is no token of a cluster\nhint: `flynn-host token`, on a host of the cluster, makes one; copy all of it"
            )
        };
        let bytes = text.trim().strip_prefix("flynn-").ok_or_else(malformed)?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(bytes).map_err(|_| malformed())?;
        let (pin, secret) = bytes.split_at_checked(PIN_BYTES).ok_or_else(malformed)?;
        let secret = std::str::from_utf8(secret).map_err(|_| malformed())?;
        ensure!(secret.len() >= SECRET_BYTES, malformed());
        Ok(Token {
            pin: pin.try_into().expect("it was split there"),
            secret: secret.to_owned(),
        })
    }
}

/// The answer to `POST /join`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub joined: Joined,
    /// Files of the directory of secrets.
    pub secrets: BTreeMap<String, String>,
}

pub struct Join<'a> {
    /// `HOST:PORT` of any host of the cluster.
    pub cluster: &'a str,
    pub token: &'a Token,
    pub host: HostId,
    /// `HOST:PORT` of this host; where the host is left out, the address that the cluster is reached from.
    pub address: Option<&'a str>,
    pub port: u16,
    /// What the cluster says, where it is empty.
    pub floating: &'a [String],
    pub state: &'a StateDir,
}

/// Becomes a member: afterwards the state directory has all that a daemon needs to follow.
pub async fn join(join: Join<'_>) -> Result<Membership> {
    ensure_empty(join.state)?;
    files::create_private_dir(join.state.root())?;
    let joiner = joiner(join.state)?;
    let (own, connection) = connect(join.cluster, join.token).await?;
    let addr = match join.address {
        Some(address) => address.to_owned(),
        None => std::net::SocketAddr::new(own.ip(), join.port).to_string(),
    };
    let began = daemon::now();
    let request = JoinRequest {
        secret: join.token.secret.clone(),
        host: join.host.clone(),
        joiner,
        addr: addr.clone(),
        version: api::VERSION.into(),
        at: began,
    };
    let welcome = ask(connection, &request)
        .await
        .map_err(|error| explain(error, &request))?;
    let ahead = began.since(welcome.joined.at);
    let behind = welcome.joined.at.since(daemon::now());
    if ahead.max(behind) > SKEW_TOLD {
        eprintln!(
            "warning: this machine's clock is {} s {} the cluster's\nhint: let it be set by the network \
             (timedatectl set-ntp true)",
            ahead.max(behind).as_secs(),
            if ahead > behind { "ahead of" } else { "behind" }
        );
    }
    let membership = Membership {
        node: welcome.joined.member.node,
        host: join.host,
        address: join.address.map(str::to_owned),
        subnet: welcome.joined.member.subnet.clone(),
        domain: welcome.joined.domain.clone(),
        floating: match join.floating {
            [] => welcome.joined.floating.clone(),
            own => own.to_vec(),
        },
        peers: welcome
            .joined
            .members
            .iter()
            .filter(|member| member.node != welcome.joined.member.node)
            .map(|member| (member.node.to_string(), member.addr.clone()))
            .collect(),
    };
    keep(join.state, &welcome, &membership)?;
    Ok(membership)
}

/// Secrets first: with `cluster.toml` the host is a member.
fn keep(state: &StateDir, welcome: &Welcome, membership: &Membership) -> Result<()> {
    let secrets = state.secrets();
    files::create_private_dir(&secrets)?;
    for (name, text) in &welcome.secrets {
        ensure!(
            crate::port::SECRETS.contains(&name.as_str()),
            "the cluster sent a secret {name:?}, which this version does not know\nhint: install the cluster's version, {}",
            welcome.joined.member.host
        );
        let mode = if name.ends_with(".pem") { 0o644 } else { 0o600 };
        files::write_atomic(&secrets.join(name), text.as_bytes(), mode)
            .with_context(|| format!("cannot write {name} in {}", secrets.display()))?;
    }
    membership.write(state)?;
    files::remove_all(&joiner_file(state))?;
    Ok(())
}

fn ensure_empty(state: &StateDir) -> Result<()> {
    if let Some(membership) = Membership::read(state)? {
        bail!(
            "this host is a member of a cluster already: {}, as {}\nhint: `flynn-host list` lists its hosts",
            membership.domain,
            membership.host
        );
    }
    let has_state = std::fs::read_dir(state.raft()).is_ok_and(|mut entries| entries.next().is_some());
    let has_secrets = state.secrets().join("ca.key").exists();
    ensure!(
        !has_state && !has_secrets,
        "there is a cluster of its own on this host, in {}\nhint: stop the daemon and run `flynn-host teardown --remove-state`, \
         which removes its apps, or join the other host to this one",
        state.root().display()
    );
    Ok(())
}

fn joiner_file(state: &StateDir) -> std::path::PathBuf {
    state.root().join("joining")
}

/// Made up once: if the answer is lost, the next attempt says the same.
fn joiner(state: &StateDir) -> Result<String> {
    let path = joiner_file(state);
    if let Some(joiner) = files::read_if_exists(&path)? {
        return Ok(joiner);
    }
    let joiner = daemon::secrets::random_key();
    files::write_atomic(&path, joiner.as_bytes(), 0o600)
        .with_context(|| format!("cannot write in {}", state.root().display()))?;
    Ok(joiner)
}

type Tls = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

/// A connection to the cluster that the token is of, and this end's address.
async fn connect(cluster: &str, token: &Token) -> Result<(std::net::SocketAddr, Tls)> {
    let stream = tokio::time::timeout(Duration::from_secs(10), dial::connect(cluster))
        .await
        .unwrap_or_else(|_| Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not answer")))
        .map_err(|error| {
            anyhow::anyhow!(
                "{cluster} cannot be reached: {error}\nhint: is the daemon running there, and may this machine reach its \
                 port for hosts (1115 where nothing else is configured)?"
            )
        })?;
    let own = stream.local_addr()?;
    let mut config = api::tls::authority_client_config(token.pin);
    config.alpn_protocols = vec![HTTP.to_vec()];
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name_of_any(), stream)
        .await
        .map_err(|error| tls_failure(cluster, &error))?;
    Ok((own, stream))
}

fn tls_failure(cluster: &str, error: &std::io::Error) -> anyhow::Error {
    use rustls::{CertificateError as Bad, Error};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. },
        )) => anyhow::anyhow!(
            "the certificate of {cluster} is not valid at this time, by this machine's clock\nhint: is the clock right? \
             `date` says {}",
            daemon::now()
        ),
        Some(Error::InvalidCertificate(Bad::UnknownIssuer)) => anyhow::anyhow!(
            "{cluster} belongs to another cluster than the token\nhint: make a token on a host of that cluster, \
             with `flynn-host token`"
        ),
        _ => anyhow::anyhow!(
            "{cluster} does not speak as a host of a cluster: {error}\nhint: give the address of its port for hosts, \
             1115 where nothing else is configured"
        ),
    }
}

async fn ask(connection: Tls, request: &JoinRequest) -> Result<Welcome, ClientError> {
    let once = Once(std::sync::Mutex::new(Some(connection)));
    let client = api::Client::dialed("http://cluster", "", Arc::new(once))?;
    let asked = client.post::<Welcome>("/join", request);
    tokio::time::timeout(ANSWER_MAX, asked).await.unwrap_or_else(|_| {
        Err(ClientError::Broken {
            url: "the cluster".into(),
            reason: "it did not answer in time".into(),
        })
    })
}

fn explain(error: ClientError, request: &JoinRequest) -> anyhow::Error {
    let hint = match &error {
        ClientError::Api(error) if !error.hint.is_empty() => error.hint.clone(),
        ClientError::Api(error) if error.code == api::Code::ValidationError => {
            "`flynn-host token`, on a host of the cluster, makes another one".into()
        }
        ClientError::Api(error) if error.code == api::Code::ObjectExists => format!(
            "give this host another id (`host = …` in host.toml), or remove the other with `flynn-host remove {}`",
            request.host
        ),
        _ => "try again; the token is used only when it worked".into(),
    };
    let message = match error {
        ClientError::Api(error) => error.message,
        other => other.to_string(),
    };
    anyhow::anyhow!("{message}\nhint: {hint}")
}

/// Gives the one connection that there is.
struct Once(std::sync::Mutex<Option<Tls>>);

impl Dial for Once {
    fn dial(&self) -> BoxFuture<'static, std::io::Result<Box<dyn Connection>>> {
        let taken = self.0.lock().expect("no panic while held").take();
        let gone = || std::io::Error::other("the connection broke");
        std::future::ready(
            taken
                .map(|connection| Box::new(connection) as Box<dyn Connection>)
                .ok_or_else(gone),
        )
        .boxed()
    }
}

/// What is kept of a token: who has read the state can still not join.
pub fn token_hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written_and_half_of_one_is_refused() {
        let token = Token {
            pin: [7; PIN_BYTES],
            secret: "0123456789abcdef0123456789abcdef".into(),
        };
        let text = token.to_string();
        assert!(text.parse::<Token>().unwrap() == token);
        assert!(format!(" {text}\n").parse::<Token>().unwrap() == token);
        for bad in ["", "flynn-", &text[6..], &text[..60], "flynn-!!"] {
            let error = bad.parse::<Token>().map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("hint: `flynn-host token`"), "{bad}");
        }
    }
}
