//! The port for other hosts: the only one of a host that others of the cluster call.
//!
//! ```text
//! POST /join                    with a token and without a certificate: becomes a member
//! POST /announce                where a member is now
//! POST /raft/snapshot           (and the store's messages, by a protocol of their own)
//! any  /controller/…  /host/…  /git/…  /images/…      what listens on this host, which asks for keys as always
//! ```

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use api::{
    Error,
    peers::{Announcement, JoinRequest, Part},
};
use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, post},
};
use daemon::{Shutdown, files};
use http::StatusCode;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::{
    dial::{HTTP_SILENCE_MAX, RAFT_SILENCE_MAX, tune},
    identity::{RAFT, node_of},
    join::Welcome,
    network::Network,
    raft,
};

const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const HEAD_MAX: Duration = Duration::from_secs(30);

/// What of a new member's secrets comes from the cluster.
pub(crate) const SECRETS: [&str; 8] = [
    "ca.pem",
    "ca.key",
    "controller.key",
    "internal.key",
    "cluster.pem",
    "cluster.key",
    "cluster.domain",
    "domains",
];

/// Who is at the other end of a connection, as its certificate says.
#[derive(Clone)]
struct Caller(Option<Arc<CertificateDer<'static>>>);

pub(crate) async fn serve(network: Network, listener: TcpListener, shutdown: Shutdown) {
    let router = router(network.clone());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                let (network, router) = (network.clone(), router.clone());
                let stop = shutdown.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        served = connection(network, router, stream) => if let Err(error) = served {
                            tracing::debug!(%from, error = format!("{error:#}"), "a connection of a host ended");
                        },
                        // Members turn to others at once.
                        _ = stop.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of a host");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(network: Network, router: Router, stream: TcpStream) -> anyhow::Result<()> {
    tune(&stream, HTTP_SILENCE_MAX)?;
    let acceptor = TlsAcceptor::from(network.identity().server());
    let stream = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await??;
    let (socket, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let caller = Caller(certificate.map(|certificate| Arc::new(certificate.clone().into_owned())));
    if session.alpn_protocol() == Some(RAFT) {
        anyhow::ensure!(is_member(&network, &caller), "no member's certificate");
        tune(socket, RAFT_SILENCE_MAX)?;
        return Ok(raft::serve(network.store().clone(), stream).await?);
    }
    let service = TowerToHyperService::new(router.layer(Extension(caller)));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(HEAD_MAX);
    builder
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await?;
    Ok(())
}

fn router(network: Network) -> Router {
    let members = Router::new()
        .route("/announce", post(announce))
        .route("/raft/snapshot", post(snapshot))
        .route("/{part}/{*path}", any(pass))
        .layer(middleware::from_fn_with_state(network.clone(), require_member));
    Router::new()
        .route("/join", post(join))
        .merge(members)
        .with_state(network)
}

/// The member that the certificate names. A host that knows of no member yet, as it has just joined,
/// believes the authority alone.
fn is_member(network: &Network, Caller(certificate): &Caller) -> bool {
    let Some(certificate) = certificate else {
        return false;
    };
    let members = network.store().read().state.members.clone();
    members.is_empty() || node_of(certificate, members.keys().copied()).is_some()
}

async fn require_member(State(network): State<Network>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>();
    if caller.is_some_and(|caller| is_member(&network, caller)) {
        return next.run(request).await;
    }
    let error = Error::new(api::Code::Unauthorized, "this is for members of the cluster");
    let error = error.with_hint("flynn-host join makes a host a member");
    (StatusCode::UNAUTHORIZED, Json(error)).into_response()
}

/// A member speaks of itself only.
async fn announce(
    State(network): State<Network>,
    Extension(Caller(certificate)): Extension<Caller>,
    Json(announcement): Json<Announcement>,
) -> Response {
    let is_itself =
        certificate.is_some_and(|certificate| node_of(&certificate, [announcement.node]).is_some());
    if !is_itself {
        return StatusCode::FORBIDDEN.into_response();
    }
    network
        .addresses()
        .announce(announcement.node, announcement.addr.clone());
    let path = format!("/internal/cluster/members/{}", announcement.node);
    let told = network
        .controller()
        .send(http::Method::PUT, &path, Some(&announcement))
        .await;
    match told {
        Ok(()) => StatusCode::OK.into_response(),
        Err(error) => failure(error),
    }
}

async fn join(State(network): State<Network>, Json(request): Json<JoinRequest>) -> Response {
    let joined = network
        .controller()
        .post::<api::peers::Joined>("/internal/cluster/members", &request)
        .await;
    let joined = match joined {
        Ok(joined) => joined,
        Err(error) => return failure(error),
    };
    let directory = network.secrets().to_owned();
    let mut secrets = BTreeMap::new();
    for name in SECRETS {
        match files::read_if_exists(&directory.join(name)) {
            Ok(Some(text)) => drop(secrets.insert(name.to_owned(), text)),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, name, "a secret of the cluster cannot be read");
                return StatusCode::INTERNAL_SERVER_ERROR.into_response();
            }
        }
    }
    Json(Welcome { joined, secrets }).into_response()
}

async fn snapshot(State(network): State<Network>, body: Body) -> Response {
    match raft::receive_snapshot(network.store(), body).await {
        Ok(answer) => answer.into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error).into_response(),
    }
}

async fn pass(
    State(network): State<Network>,
    Path((part, _)): Path<(String, String)>,
    mut request: Request,
) -> Response {
    let part = Part::ALL.into_iter().find(|known| known.name() == part);
    let Some((part, place)) = part.and_then(|part| Some((part, network.local(part)?))) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let rest = path.trim_start_matches('/').trim_start_matches(part.name());
    if let Ok(uri) = rest.parse() {
        *request.uri_mut() = uri;
    }
    match network.pool().pass(&format!("http://{place}"), request).await {
        Ok(response) => response,
        Err(error) => {
            let message = format!("the host's {} does not answer: {error}", part.name());
            (StatusCode::SERVICE_UNAVAILABLE, Json(Error::unavailable(message))).into_response()
        }
    }
}

/// Passes an error of the controller on as it is.
fn failure(error: api::ClientError) -> Response {
    let error = match error {
        api::ClientError::Api(error) => error,
        api::ClientError::NotFound => Error::not_found(),
        other => Error::unavailable(other.to_string()),
    };
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    (status, Json(error)).into_response()
}

pub(crate) type Local = BTreeMap<&'static str, SocketAddr>;
