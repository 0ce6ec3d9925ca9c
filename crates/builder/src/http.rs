//! Git's smart HTTP protocol: two questions per exchange, answered by the git program.
//!
//! ```text
//!   GET  /APP.git/info/refs?service=git-receive-pack     what is there
//!   POST /APP.git/git-receive-pack                        the pack, then the hook's output
//! ```
//!
//! Bodies are streamed both ways; a pack is never held in memory. A client that goes away takes its
//! git process along, and with it the hook, by which the build learns of it.

use std::{sync::Arc, time::Duration};

use api::ClientError;
use axum::{
    Router,
    body::Body,
    extract::{Path, Query, Request, State as Extract},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{ChildStdin, ChildStdout},
    sync::oneshot,
    task::JoinHandle,
};
use types::App;

use crate::{
    Builder,
    copies::{self, CopyError, Held},
    gzip::Gunzip,
    process::Group,
    pushes::Registered,
    repo::{self, Repo},
};

type Shared = Extract<Arc<Builder>>;

/// A pusher who sends nothing for this long in the middle of a pack is cut off.
const SILENCE_MAX: Duration = Duration::from_secs(300);
const READ_BYTES: usize = 32 << 10;

pub fn router(builder: Arc<Builder>) -> Router {
    Router::new()
        .route("/{repo}/info/refs", get(advertise))
        .route("/{repo}/git-receive-pack", post(receive_pack))
        .route("/{repo}/git-upload-pack", post(upload_pack))
        .route("/.well-known/status", get(status))
        .route_layer(axum::middleware::from_fn_with_state(
            builder.keys.clone(),
            daemon::auth::require_key,
        ))
        .layer(axum::middleware::from_fn_with_state(builder.clone(), pass_on))
        .merge(
            copies::http::routes().route_layer(axum::middleware::from_fn_with_state(
                builder.keys.clone(),
                daemon::auth::require_internal_key,
            )),
        )
        .with_state(builder)
}

/// How long a push may wait for a host that leads.
const LEADER_PATIENCE: Duration = Duration::from_secs(8);

async fn pass_on(Extract(builder): Shared, request: Request, next: axum::middleware::Next) -> Response {
    let forward = builder.forward.clone().filter(|forward| !forward.leads());
    let Some(forward) = forward else {
        return next.run(request).await;
    };
    match forward.forward("git", request, LEADER_PATIENCE).await {
        Ok(response) => response,
        Err(request) if forward.leads() => next.run(request).await,
        Err(_) => {
            let text = "No host leads the cluster just now; push again in a moment.\n";
            refuse(StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    ReceivePack,
    UploadPack,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Service::ReceivePack => "receive-pack",
            Service::UploadPack => "upload-pack",
        }
    }
}

#[derive(Deserialize)]
pub struct Asked {
    service: Option<String>,
}

impl Asked {
    pub fn is(&self, service: Service) -> bool {
        let name = self.service.as_deref().and_then(|name| name.strip_prefix("git-"));
        name == Some(service.name())
    }
}

async fn status() -> impl IntoResponse {
    let status = api::wire::Status {
        status: "healthy".into(),
        version: api::VERSION.into(),
        detail: None,
    };
    axum::Json(api::wire::StatusAnswer { data: status })
}

async fn advertise(
    Extract(builder): Shared,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let known = [Service::ReceivePack, Service::UploadPack];
    let Some(service) = known.into_iter().find(|service| asked.is(*service)) else {
        return refuse(
            StatusCode::FORBIDDEN,
            "This server needs a git that speaks smart HTTP (1.6.6 or later).\n",
        );
    };
    match find(&builder, &name).await {
        Ok((_, repo)) => advertise_repo(&builder, &repo, service, &headers).await,
        Err(refusal) => refusal,
    }
}

pub async fn advertise_repo(
    builder: &Builder,
    repo: &Repo,
    service: Service,
    headers: &HeaderMap,
) -> Response {
    let protocol = protocol(headers, service);
    let mut git = repo.service(
        service.name(),
        &builder.hooks,
        builder.limits.pack_bytes_max,
        &["--http-backend-info-refs"],
    );
    if let Some(protocol) = protocol {
        git.env("GIT_PROTOCOL", protocol);
    }
    let output = match git.output().await {
        Ok(output) if output.status.success() => output.stdout,
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            tracing::error!(repo = %repo.path().display(), error, "git cannot read a repository");
            return refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "The repository cannot be read.\n",
            );
        }
        Err(error) => {
            tracing::error!(%error, "git cannot be run");
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "The server cannot run git.\n");
        }
    };
    let mut body = Vec::with_capacity(output.len() + 64);
    // The second version of the protocol leaves the greeting out.
    if !protocol.is_some_and(|protocol| protocol.contains("version=2")) {
        let greeting = format!("# service=git-{}\n", service.name());
        body.extend_from_slice(format!("{:04x}{greeting}0000", greeting.len() + 4).as_bytes());
    }
    body.extend_from_slice(&output);
    answer(
        &format!("application/x-git-{}-advertisement", service.name()),
        body.into(),
    )
}

async fn receive_pack(builder: Shared, name: Path<String>, request: Request) -> Response {
    exchange(builder.0, name.0, request, Service::ReceivePack).await
}

async fn upload_pack(builder: Shared, name: Path<String>, request: Request) -> Response {
    exchange(builder.0, name.0, request, Service::UploadPack).await
}

async fn exchange(builder: Arc<Builder>, name: String, request: Request, service: Service) -> Response {
    match find(&builder, &name).await {
        Ok((app, repo)) => exchange_with(builder, name, Some(app), repo, request, service).await,
        Err(refusal) => refusal,
    }
}

/// `app` is whose push it is, if it is one.
pub async fn exchange_with(
    builder: Arc<Builder>,
    name: String,
    app: Option<App>,
    repo: Repo,
    request: Request,
    service: Service,
) -> Response {
    let headers = request.headers();
    let expected = format!("application/x-git-{}-request", service.name());
    if headers
        .get(header::CONTENT_TYPE)
        .is_none_or(|value| value.as_bytes() != expected.as_bytes())
    {
        return refuse(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "This is not a request of git.\n",
        );
    }
    let gunzip = match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => None,
        Some(b"gzip" | b"x-gzip") => Some(Gunzip::default()),
        Some(_) => return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Only gzip is understood.\n"),
    };
    let protocol = protocol(headers, service);
    let mut git = repo.service(service.name(), &builder.hooks, builder.limits.pack_bytes_max, &[]);
    if let Some(protocol) = protocol {
        git.env("GIT_PROTOCOL", protocol);
    }
    let push = app.filter(|_| service == Service::ReceivePack);
    let push = push.map(|app| (builder.pushes.register(app.clone()), app));
    if let Some((push, _)) = &push {
        git.env(crate::hook::PUSH, push.token())
            .env(crate::hook::SOCKET, &builder.socket);
    }
    let mut group = match Group::spawn(git) {
        Ok(group) => group,
        Err(error) => {
            tracing::error!(%error, "git cannot be run");
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "The server cannot run git.\n");
        }
    };
    let settled = push.map(|(push, app)| {
        let (settled, outcome) = oneshot::channel();
        let (builder, repo) = (builder.clone(), repo.clone());
        group.after(move || drop(tokio::spawn(settle(builder, repo, app, push, settled))));
        outcome
    });
    let (stdin, stdout, stderr) = group.streams();
    tokio::spawn(feed(request.into_body(), stdin, gunzip));
    let stderr = tokio::spawn(repo::read_some(Some(stderr)));

    let answering = Answering {
        builder,
        repo,
        name,
        stdout,
        group,
        stderr,
        settling: settled.map(|settled| (settled, Held::default())),
    };
    let body = futures::stream::unfold(Some(answering), async |answering| answering?.next().await);
    answer(
        &format!("application/x-git-{}-result", service.name()),
        Body::from_stream(body),
    )
}

/// What came of a push: lines for the pusher where it does not count.
type Settled = Result<(), Vec<String>>;

/// After git, whether the pusher is still there or not.
async fn settle(
    builder: Arc<Builder>,
    repo: Repo,
    app: App,
    push: Registered,
    settled: oneshot::Sender<Settled>,
) {
    let outcome = match push.take_accepted() {
        Some(accepted) => builder.settle(app.id, &repo, accepted).await,
        None => Ok(()),
    };
    drop(push);
    builder.sweep(app.id, &repo);
    let _ = settled.send(outcome);
}

/// An answer of git on its way to the client.
struct Answering {
    builder: Arc<Builder>,
    repo: Repo,
    name: String,
    stdout: ChildStdout,
    group: Group,
    stderr: JoinHandle<String>,
    /// Of a push: what comes of it, and what is not said before.
    settling: Option<(oneshot::Receiver<Settled>, Held)>,
}

impl Answering {
    async fn next(mut self) -> Option<(std::io::Result<Bytes>, Option<Answering>)> {
        loop {
            let mut buffer = bytes::BytesMut::with_capacity(READ_BYTES);
            match self.stdout.read_buf(&mut buffer).await {
                Ok(0) => return self.end().await.map(|bytes| (Ok(bytes), None)),
                Ok(_) => {
                    let bytes = match &mut self.settling {
                        Some((_, held)) => held.push(&buffer).into(),
                        None => buffer.freeze(),
                    };
                    if !bytes.is_empty() {
                        return Some((Ok(bytes), Some(self)));
                    }
                }
                Err(error) => return Some((Err(error), None)),
            }
        }
    }

    async fn end(mut self) -> Option<Bytes> {
        let status = self.group.wait().await;
        let said = self.stderr.await.unwrap_or_default();
        let has_succeeded = status.as_ref().is_ok_and(|status| status.success());
        if !has_succeeded {
            tracing::debug!(repo = self.name, said, ?status, "git ended with an error");
        }
        let (settled, held) = self.settling?;
        let rest = match settled.await {
            Ok(Ok(())) => held.accepted(),
            Ok(Err(lines)) => held.refused(&lines),
            Err(_) => held.refused(&["The platform is restarting; push again in a moment.".into()]),
        };
        if has_succeeded {
            self.builder.tidy_later(self.repo);
        }
        Some(rest.into()).filter(|bytes: &Bytes| !bytes.is_empty())
    }
}

/// Passes the request's body on to git, which may stop reading before its end.
async fn feed(body: Body, mut stdin: ChildStdin, mut gunzip: Option<Gunzip>) {
    let mut body = body.into_data_stream();
    let mut git_reads = true;
    loop {
        let piece: Bytes = match tokio::time::timeout(SILENCE_MAX, body.next()).await {
            Ok(Some(Ok(piece))) => piece,
            // The end, or a connection that broke; git tells one from the other by the pack's own end.
            Ok(Some(Err(_)) | None) | Err(_) => break,
        };
        // What git does not want any more is read all the same: a client that still sends would take
        // a closed connection for a failure and never read why it was refused.
        if !git_reads {
            continue;
        }
        let written = match &mut gunzip {
            None => stdin.write_all(&piece).await,
            Some(gunzip) => gunzip.write(&piece, &mut stdin).await,
        };
        git_reads = written.is_ok();
    }
    if git_reads {
        if let Some(gunzip) = &mut gunzip {
            let _ = gunzip.finish(&mut stdin).await;
        }
        let _ = stdin.shutdown().await;
    }
}

/// The app that a path names, and its repository.
async fn find(builder: &Builder, name: &str) -> Result<(App, repo::Repo), Response> {
    let name = name.strip_suffix(".git").unwrap_or(name);
    let is_name = types::check_app_name(name).is_ok();
    let found = match is_name {
        true => builder.controller.app(name).await,
        false => Err(ClientError::NotFound),
    };
    let app = match found {
        Ok(app) => app,
        Err(error) if error.is_not_found() => {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
            let text = format!(
                "There is no app \"{shown}\".\nhint: `flynn apps` lists what there is, `flynn create {shown}` makes it.\n"
            );
            return Err(refuse(StatusCode::NOT_FOUND, &text));
        }
        Err(error) => {
            tracing::warn!(%error, "the controller does not tell which apps there are");
            let text = "The controller does not answer; try again in a moment.\n";
            return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, text));
        }
    };
    let repo = match builder.repos.of(app.id).await {
        Ok(repo) => repo,
        Err(error) => {
            tracing::error!(app = %app.id, error = format!("{error:#}"), "no repository");
            return Err(refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "The app's repository cannot be made.\n",
            ));
        }
    };
    match builder.catch_up(app.id, &repo).await {
        Ok(()) => Ok((app, repo)),
        Err(error @ (CopyError::OutOfReach(_) | CopyError::Controller(_))) => {
            tracing::warn!(app = %app.id, %error, "a repository cannot be served");
            let text = format!("The app's repository cannot be served: {error}.\nTry again in a moment.\n");
            Err(refuse(StatusCode::SERVICE_UNAVAILABLE, &text))
        }
        Err(CopyError::Broken(error)) => {
            tracing::error!(app = %app.id, error = format!("{error:#}"), "a repository cannot be read");
            Err(refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "The repository cannot be read.\n",
            ))
        }
    }
}

/// The protocol that the client asks for, if it is one; pushes have only the first.
fn protocol(headers: &HeaderMap, service: Service) -> Option<&str> {
    let asked = headers.get("git-protocol")?.to_str().ok()?;
    let is_plain = asked.len() <= 100
        && asked
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"=:.-".contains(&b));
    Some(asked).filter(|_| is_plain && service == Service::UploadPack)
}

fn answer(content_type: &str, body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-cache, max-age=0, must-revalidate"),
        (header::EXPIRES, "Fri, 01 Jan 1980 00:00:00 GMT"),
        (header::PRAGMA, "no-cache"),
    ];
    (headers, body).into_response()
}

/// git shows the text of an error if it is plain text.
fn refuse(status: StatusCode, text: &str) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        text.to_owned(),
    )
        .into_response()
}
