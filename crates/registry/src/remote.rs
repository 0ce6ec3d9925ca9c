//! A client of registries outside: as much of the specification as a pull needs.
//!
//! Whoever asks for a pull has the cluster's key, so where it leads is not limited; what comes back is:
//! in size, in time between two pieces, in redirections. Credentials go to the registry that was named and
//! to where it sends for tokens, never to where a blob is redirected.

use std::time::Duration;

use api::{Trust, tls};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;

use crate::{
    error::{Code, Failure, Result},
    manifest::{DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_BYTES_MAX, OCI_INDEX, OCI_MANIFEST},
    name::{BlobDigest, Reference, RepositoryName},
};

const PATIENCE: Duration = Duration::from_secs(30);
const REDIRECTIONS_MAX: usize = 5;
const TOKEN_BYTES_MAX: usize = 1 << 20;
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// `[HOST/]NAME[:TAG][@DIGEST]` as Docker reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    pub host: String,
    pub repository: RepositoryName,
    pub reference: Reference,
}

impl ImageName {
    pub fn parse(text: &str) -> Result<ImageName> {
        let invalid = || {
            let text = format!(
                "{text:?} is no name of an image. hint: write it as HOST/NAME:TAG, or NAME:TAG for Docker Hub"
            );
            Failure::new(Code::NameInvalid, text)
        };
        let rest = text.strip_prefix("docker://").unwrap_or(text);
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<BlobDigest>().map_err(|()| invalid())?)),
            None => (rest, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag)),
            _ => (rest, None),
        };
        let (host, name) = match rest.split_once('/') {
            Some((host, name)) if host.contains(['.', ':']) || host == "localhost" => (host, name.to_owned()),
            _ => (DOCKER_HUB, rest.to_owned()),
        };
        let name = match host == DOCKER_HUB && !name.contains('/') {
            true => format!("library/{name}"),
            false => name,
        };
        let reference = match digest {
            Some(digest) => Reference::Digest(digest),
            None => tag.unwrap_or("latest").parse().map_err(|()| invalid())?,
        };
        Ok(ImageName {
            host: if host == DOCKER_HUB { DOCKER_HUB_HOST } else { host }.to_owned(),
            repository: name.parse().map_err(|()| invalid())?,
            reference,
        })
    }

    /// Docker's own rule for registries without TLS: those of this machine.
    fn base(&self) -> String {
        let name = self
            .host
            .rsplit_once(':')
            .map_or(self.host.as_str(), |(name, _)| name);
        let is_here = name == "localhost"
            || name
                .parse::<std::net::Ipv4Addr>()
                .is_ok_and(|ip| ip.is_loopback());
        format!("{}://{}", if is_here { "http" } else { "https" }, self.host)
    }
}

#[derive(Debug, Clone, Default)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl Credentials {
    fn basic(&self) -> Option<String> {
        let pair = format!("{}:{}", self.user, self.password);
        (!self.user.is_empty()).then(|| format!("Basic {}", BASE64_STANDARD.encode(pair)))
    }
}

/// One image of a registry, with what it asked for as proof.
pub struct Remote {
    name: ImageName,
    credentials: Credentials,
    authorization: Option<String>,
}

impl Remote {
    pub fn new(name: ImageName, credentials: Credentials) -> Remote {
        Remote {
            name,
            credentials,
            authorization: None,
        }
    }

    /// A manifest's media type and bytes, which are those of the digest where one is asked for.
    pub async fn manifest(&mut self, reference: &Reference) -> Result<(Option<String>, Vec<u8>)> {
        let path = format!("manifests/{reference}");
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let response = self.get(&path, &accept).await?;
        let media_type = response.headers().get(header::CONTENT_TYPE);
        let media_type = media_type.and_then(|kind| kind.to_str().ok()).map(str::to_owned);
        let bytes = self.collect(response, MANIFEST_BYTES_MAX).await?;
        if let Reference::Digest(digest) = reference
            && BlobDigest::of_as(digest.algorithm(), &bytes) != *digest
        {
            return Err(self.failed("its manifest is not the one of the digest"));
        }
        Ok((media_type, bytes))
    }

    pub async fn blob(&mut self, digest: &BlobDigest) -> Result<Incoming> {
        Ok(self.get(&format!("blobs/{digest}"), "*/*").await?.into_body())
    }

    async fn get(&mut self, path: &str, accept: &str) -> Result<Response<Incoming>> {
        let url = format!("{}/v2/{}/{path}", self.name.base(), self.name.repository);
        let response = self.follow(&url, accept).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.accepted(response).await;
        }
        let challenge = response.headers().get(header::WWW_AUTHENTICATE);
        let challenge = challenge
            .and_then(|text| text.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        self.authorization = Some(self.authorize(&challenge).await?);
        let response = self.follow(&url, accept).await?;
        self.accepted(response).await
    }

    async fn accepted(&self, response: Response<Incoming>) -> Result<Response<Incoming>> {
        let text = match response.status() {
            status if status.is_success() => return Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "it wants other credentials. hint: --username NAME, and the password on standard input".into()
            }
            StatusCode::NOT_FOUND => "there is no such image".to_owned(),
            StatusCode::TOO_MANY_REQUESTS => {
                "it wants fewer requests; try again later, or with credentials".into()
            }
            status => format!("it answers {status}"),
        };
        Err(self.failed(&text))
    }

    /// Asks for what a registry wants as proof, as its challenge says.
    async fn authorize(&self, challenge: &str) -> Result<String> {
        let (scheme, parameters) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return self.credentials.basic().ok_or_else(|| {
                self.failed("it wants credentials. hint: --username NAME, and the password on standard input")
            });
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(self.failed("it asks for a kind of proof that is not known"));
        }
        let parameter = |name: &str| {
            let begin = parameters.find(&format!("{name}=\""))? + name.len() + 2;
            parameters[begin..].split('"').next()
        };
        let realm = parameter("realm").ok_or_else(|| self.failed("it does not say where its tokens are"))?;
        let mut query = format!("scope=repository:{}:pull", self.name.repository);
        if let Some(service) = parameter("service") {
            query.push_str(&format!("&service={}", api::client::escape(service)));
        }
        let separator = if realm.contains('?') { '&' } else { '?' };
        let url = format!("{realm}{separator}{query}");
        let response = self
            .request(&url, "application/json", self.credentials.basic())
            .await?;
        let response = self.accepted(response).await?;
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let bytes = self.collect(response, TOKEN_BYTES_MAX).await?;
        let answer: Token =
            serde_json::from_slice(&bytes).map_err(|_| self.failed("its token cannot be read"))?;
        let token = if answer.token.is_empty() {
            answer.access_token
        } else {
            answer.token
        };
        Ok(format!("Bearer {token}"))
    }

    async fn follow(&self, url: &str, accept: &str) -> Result<Response<Incoming>> {
        let mut url = url.to_owned();
        let mut authorization = self.authorization.clone();
        for _ in 0..REDIRECTIONS_MAX {
            let response = self.request(&url, accept, authorization.clone()).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let place = response
                .headers()
                .get(header::LOCATION)
                .and_then(|place| place.to_str().ok());
            let place = place.ok_or_else(|| self.failed("it redirects to nowhere"))?;
            let base = origin(&url).unwrap_or_default();
            let next = if place.starts_with('/') {
                format!("{base}{place}")
            } else {
                place.to_owned()
            };
            if origin(&next) != Some(base) {
                authorization = None;
            }
            url = next;
        }
        Err(self.failed("it redirects in circles"))
    }

    async fn request(
        &self,
        url: &str,
        accept: &str,
        authorization: Option<String>,
    ) -> Result<Response<Incoming>> {
        let asked = async {
            let uri: Uri = url
                .parse()
                .map_err(|_| "it names an address that is none".to_owned())?;
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let is_tls = uri.scheme_str() == Some("https");
            let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
            let mut request = Request::builder()
                .method(Method::GET)
                .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
                .header(
                    header::HOST,
                    uri.authority()
                        .map_or(host.as_str(), |authority| authority.as_str()),
                )
                .header(header::ACCEPT, accept)
                .header(header::USER_AGENT, concat!("flynn/", env!("CARGO_PKG_VERSION")));
            if let Some(value) = authorization.and_then(|text| HeaderValue::from_str(&text).ok()) {
                request = request.header(header::AUTHORIZATION, value);
            }
            let request = request
                .body(Empty::<Bytes>::new())
                .map_err(|error| error.to_string())?;
            let words = |error: &dyn std::fmt::Display| error.to_string();
            let stream = api::client::connect(&host, port)
                .await
                .map_err(|error| words(&error))?;
            if !is_tls {
                return exchange(TokioIo::new(stream), request)
                    .await
                    .map_err(|error| words(&error));
            }
            let config = tls::client_config(&Trust::System).map_err(|error| words(&error))?;
            let name = ServerName::try_from(host).map_err(|error| words(&error))?;
            let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
            let stream = connector
                .connect(name, stream)
                .await
                .map_err(|error| words(&error))?;
            exchange(TokioIo::new(stream), request)
                .await
                .map_err(|error| words(&error))
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(self.failed(&format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }

    async fn collect(&self, response: Response<Incoming>, bytes_max: usize) -> Result<Vec<u8>> {
        let body = Limited::new(response.into_body(), bytes_max).collect();
        match tokio::time::timeout(PATIENCE, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
            Ok(Err(error)) => Err(self.failed(&error.to_string())),
            Err(_) => Err(self.failed("its answer broke off")),
        }
    }

    fn failed(&self, why: &str) -> Failure {
        let name = format!(
            "{}/{}:{}",
            self.name.host, self.name.repository, self.name.reference
        );
        Failure::new(Code::ManifestUnknown, format!("{name} cannot be pulled: {why}"))
            .with_status(StatusCode::BAD_GATEWAY)
    }
}

async fn exchange<S>(stream: TokioIo<S>, request: Request<Empty<Bytes>>) -> hyper::Result<Response<Incoming>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(async move {
        // An error is the request's, too.
        let _ = connection.await;
    });
    sender.send_request(request).await
}

/// `https://HOST` of a URL.
fn origin(url: &str) -> Option<&str> {
    let begin = url.find("://")? + 3;
    let end = url[begin..].find(['/', '?']).map_or(url.len(), |end| begin + end);
    Some(&url[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let check = |text: &str, expected: &str| {
            let told = match ImageName::parse(text) {
                Ok(name) => format!("{} {} {}", name.base(), name.repository, name.reference),
                Err(_) => "invalid".into(),
            };
            assert_eq!(told, expected, "{text}");
        };
        check("nginx", "https://registry-1.docker.io library/nginx latest");
        check(
            "docker.io/library/nginx:1.27",
            "https://registry-1.docker.io library/nginx 1.27",
        );
        check(
            "grafana/grafana:11",
            "https://registry-1.docker.io grafana/grafana 11",
        );
        check("docker://ghcr.io/a/b/c", "https://ghcr.io a/b/c latest");
        check("localhost:5000/x:y", "http://localhost:5000 x y");
        check("127.0.0.1:5000/x", "http://127.0.0.1:5000 x latest");
        let digest = BlobDigest::of(b"x");
        check(
            &format!("quay.io/a/b:v1@{digest}"),
            &format!("https://quay.io a/b {digest}"),
        );
        check("UPPER/case", "invalid");
        check("a b", "invalid");
        check("x@sha256:12", "invalid");
    }

    #[test]
    fn credentials_stay_with_where_they_belong() {
        assert_eq!(origin("https://a.b:5/c?d"), Some("https://a.b:5"));
        assert_eq!(origin("https://a.b?d"), Some("https://a.b"));
        assert_eq!(origin("nothing"), None);
    }
}
