//! One bucket of one object store: signs requests and sends them.
//!
//! What a reader would get wrong: the signature is in the URL, where every server that speaks S3 understands it, so
//! the bytes of a body need not be known before it is sent. Files are sent as they are read, those that are large in
//! parts, so the memory that it takes does not depend on them.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use api::{
    Trust,
    client::{StreamBody, empty_body},
    objects::{Object, ObjectBytes, ObjectError, Source},
    tls,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyDataStream, BodyExt, Full, Limited, StreamBody as Streamed};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rusty_s3::{
    Bucket, Credentials, S3Action, UrlStyle,
    actions::{CompleteMultipartUploadResponse, CreateMultipartUpload, ListObjectsV2},
};
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWrite},
};
use tokio_util::io::ReaderStream;

use crate::error;

/// What is larger is sent in parts, of this size where nothing else is said. There may be 10 000 of them, which is 640 GB.
pub const PART_BYTES: u64 = 64 << 20;
/// How long a signature may be used: it has to last until a request has been sent, not answered.
const SIGNED_FOR: Duration = Duration::from_secs(3600);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// For an answer to begin once everything was sent.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// For a part to be sent: slower than 100 kB/s is no connection.
const SEND_MAX: Duration = Duration::from_secs(600);
/// Between two pieces of what is fetched.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Of a list, or an error.
const ANSWER_BYTES_MAX: usize = 16 << 20;
const CHUNK_BYTES: usize = 256 << 10;

pub struct Remote {
    bucket: Bucket,
    credentials: Credentials,
    prefix: String,
    part_bytes: u64,
    tls: Option<tokio_rustls::TlsConnector>,
    /// `HOST:PORT`, for messages.
    host: String,
}

impl Remote {
    pub fn new(wish: &types::Bucket, part_bytes: u64) -> Result<Remote, ObjectError> {
        let bad = || error::bad_endpoint(&wish.endpoint);
        let style = match wish.path_style {
            true => UrlStyle::Path,
            false => UrlStyle::VirtualHost,
        };
        let endpoint = wish.endpoint.parse().map_err(|_| bad())?;
        let bucket =
            Bucket::new(endpoint, style, wish.name.clone(), wish.region.clone()).map_err(|_| bad())?;
        let url = bucket.base_url();
        let tls = match url.scheme() {
            "https" => {
                let config = tls::client_config(&Trust::System)
                    .map_err(|error| error::unreachable(&wish.endpoint, &error.to_string()))?;
                Some(tokio_rustls::TlsConnector::from(Arc::new(config)))
            }
            _ => None,
        };
        let port = url.port_or_known_default().unwrap_or_default();
        Ok(Remote {
            host: format!("{}:{port}", url.host_str().unwrap_or_default()),
            bucket,
            credentials: Credentials::new(&wish.access_key_id, &wish.secret_access_key),
            prefix: match &*wish.prefix {
                "" => String::new(),
                prefix => format!("{prefix}/"),
            },
            part_bytes,
            tls,
        })
    }

    fn whole(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Fails where the store says that it has no such bucket: some would make one with the first object.
    pub async fn check_bucket(&self) -> Result<(), ObjectError> {
        let action = self.bucket.head_bucket(Some(&self.credentials));
        let response = self.send(Method::HEAD, signed(&action), empty_body(), 0).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Err(error::no_bucket()),
            _ => Ok(()),
        }
    }

    pub async fn has(&self, key: &str) -> Result<bool, ObjectError> {
        let key = self.whole(key);
        let action = self.bucket.head_object(Some(&self.credentials), &key);
        let response = self.send(Method::HEAD, signed(&action), empty_body(), 0).await?;
        match response.status() {
            status if status.is_success() => Ok(true),
            // Which of the two lacks, the object or the bucket, is said nowhere; the next request tells.
            StatusCode::NOT_FOUND => Ok(false),
            status => Err(error::refused(status, "")),
        }
    }

    pub async fn get(&self, key: &str) -> Result<Option<ObjectBytes>, ObjectError> {
        let key = self.whole(key);
        let action = self.bucket.get_object(Some(&self.credentials), &key);
        let response = self.send(Method::GET, signed(&action), empty_body(), 0).await?;
        let status = response.status();
        if !status.is_success() {
            let body = self.text(response).await?;
            return match error::is_no_such_key(status, &body) {
                true => Ok(None),
                false => Err(error::refused(status, &body)),
            };
        }
        let pieces = BodyDataStream::new(response.into_body()).map_err(std::io::Error::other);
        let pieces = futures::stream::unfold(pieces, async |mut pieces| {
            let next = tokio::time::timeout(SILENCE_MAX, pieces.next()).await;
            let silent = || std::io::Error::new(std::io::ErrorKind::TimedOut, "nothing came for a long time");
            Some((next.unwrap_or_else(|_| Some(Err(silent())))?, pieces))
        });
        Ok(Some(pieces.boxed()))
    }

    /// An object that is a text of ours.
    pub async fn get_small(&self, key: &str) -> Result<Option<Vec<u8>>, ObjectError> {
        let Some(bytes) = self.get(key).await? else {
            return Ok(None);
        };
        let bytes: Vec<Bytes> = bytes
            .take(1024)
            .try_collect()
            .await
            .map_err(|error| error::broke_off(&self.host, &error.to_string()))?;
        Ok(Some(bytes.concat()))
    }

    pub async fn put(&self, key: &str, source: Source<'_>) -> Result<(), ObjectError> {
        let key = self.whole(key);
        let file = match source {
            Source::Bytes(bytes) => {
                let length = bytes.len() as u64;
                let body = Full::new(bytes).map_err(|never| match never {}).boxed();
                return self.put_whole(&key, body, length).await;
            }
            Source::File(file) => file,
        };
        let failed = |error: std::io::Error| error::of_disk(file, &error);
        let length = tokio::fs::metadata(file).await.map_err(failed)?.len();
        if length <= self.part_bytes {
            let body = part_of(file, 0, length).await.map_err(failed)?;
            return self.put_whole(&key, body, length).await;
        }
        let action = self.bucket.create_multipart_upload(Some(&self.credentials), &key);
        let answer = self
            .answer(Method::POST, signed(&action), empty_body(), 0)
            .await?;
        let upload = CreateMultipartUpload::parse_response(&answer)
            .map_err(|error| error::bad_answer(&error.to_string()))?;
        let sent = self.put_parts(&key, upload.upload_id(), file, length).await;
        if sent.is_err() {
            // Parts that nobody completes are kept, and paid for.
            let action =
                self.bucket
                    .abort_multipart_upload(Some(&self.credentials), &key, upload.upload_id());
            let _ = self
                .answer(Method::DELETE, signed(&action), empty_body(), 0)
                .await;
        }
        sent
    }

    async fn put_whole(&self, key: &str, body: StreamBody, length: u64) -> Result<(), ObjectError> {
        let action = self.bucket.put_object(Some(&self.credentials), key);
        self.answer(Method::PUT, signed(&action), body, length)
            .await
            .map(drop)
    }

    async fn put_parts(&self, key: &str, upload: &str, file: &Path, length: u64) -> Result<(), ObjectError> {
        let mut tags = vec![];
        let mut begin = 0;
        while begin < length {
            let number = u16::try_from(tags.len() + 1)
                .map_err(|_| error::bad_answer("the file is too large for an object"))?;
            let bytes = self.part_bytes.min(length - begin);
            let failed = |error: std::io::Error| error::of_disk(file, &error);
            let body = part_of(file, begin, bytes).await.map_err(failed)?;
            let action = self
                .bucket
                .upload_part(Some(&self.credentials), key, number, upload);
            let response = self.send(Method::PUT, signed(&action), body, bytes).await?;
            let status = response.status();
            let tag = response
                .headers()
                .get(header::ETAG)
                .and_then(|tag| tag.to_str().ok());
            match tag.map(str::to_owned).filter(|_| status.is_success()) {
                Some(tag) => tags.push(tag),
                None => return Err(error::refused(status, &self.text(response).await?)),
            }
            begin += bytes;
        }
        let tags = tags.iter().map(String::as_str);
        let action = self
            .bucket
            .complete_multipart_upload(Some(&self.credentials), key, upload, tags);
        let body = Bytes::from(action.clone().body());
        let length = body.len() as u64;
        let body = Full::new(body).map_err(|never| match never {}).boxed();
        let answer = self.answer(Method::POST, signed(&action), body, length).await?;
        // It may say 200 and fail afterwards.
        match CompleteMultipartUploadResponse::parse(&answer) {
            Ok(_) => Ok(()),
            Err(_) => Err(error::refused(StatusCode::INTERNAL_SERVER_ERROR, &answer)),
        }
    }

    /// Keys without the prefix.
    pub async fn list(&self, below: &str) -> Result<Vec<Object>, ObjectError> {
        let (below, mut found, mut next) = (self.whole(below), vec![], None::<String>);
        loop {
            let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
            action.with_prefix(below.clone());
            if let Some(token) = next.take() {
                action.with_continuation_token(token);
            }
            let answer = self.answer(Method::GET, signed(&action), empty_body(), 0).await?;
            let page = ListObjectsV2::parse_response(&answer)
                .map_err(|error| error::bad_answer(&error.to_string()))?;
            found.extend(page.contents.into_iter().filter_map(|row| {
                let modified = row
                    .last_modified
                    .and_then(|at| at.parse::<jiff::Timestamp>().ok());
                Some(Object {
                    key: row.key.strip_prefix(&self.prefix)?.to_owned(),
                    modified: modified.map(SystemTime::from),
                })
            }));
            next = page.next_continuation_token;
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    /// Also where there is none.
    pub async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let key = self.whole(key);
        let action = self.bucket.delete_object(Some(&self.credentials), &key);
        self.answer(Method::DELETE, signed(&action), empty_body(), 0)
            .await
            .map(drop)
    }

    /// The text of an answer that must be a success.
    async fn answer(
        &self,
        method: Method,
        url: String,
        body: StreamBody,
        length: u64,
    ) -> Result<String, ObjectError> {
        let response = self.send(method, url, body, length).await?;
        let status = response.status();
        let text = self.text(response).await?;
        match status.is_success() {
            true => Ok(text),
            false => Err(error::refused(status, &text)),
        }
    }

    async fn text(&self, response: Response<Incoming>) -> Result<String, ObjectError> {
        let read = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
        let broken = |why: &str| error::broke_off(&self.host, why);
        match tokio::time::timeout(ANSWER_MAX, read).await {
            Ok(Ok(body)) => Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned()),
            Ok(Err(error)) => Err(broken(&error.to_string())),
            Err(_) => Err(broken("nothing came for a long time")),
        }
    }

    async fn send(
        &self,
        method: Method,
        url: String,
        body: StreamBody,
        length: u64,
    ) -> Result<Response<Incoming>, ObjectError> {
        let bad = || error::bad_endpoint(&self.host);
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let authority = uri
            .authority()
            .map(|authority| authority.as_str())
            .unwrap_or_default();
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let has_body = method == Method::PUT || method == Method::POST;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, authority)
            .header(header::USER_AGENT, concat!("flynn/", env!("CARGO_PKG_VERSION")));
        if has_body {
            request = request.header(header::CONTENT_LENGTH, length);
        }
        let request = request.body(body).map_err(|_| bad())?;
        let opened = tokio::time::timeout(CONNECT_MAX, self.connect()).await;
        let opened = opened.unwrap_or_else(|_| Err(std::io::Error::other("no answer")));
        let mut sender = opened.map_err(|error| error::unreachable(&self.host, &error.to_string()))?;
        let patience = if has_body { SEND_MAX } else { ANSWER_MAX };
        match tokio::time::timeout(patience, sender.send_request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(error::broke_off(&self.host, &error.to_string())),
            Err(_) => Err(error::broke_off(&self.host, "no answer")),
        }
    }

    async fn connect(&self) -> std::io::Result<http1::SendRequest<StreamBody>> {
        let (host, port) = self.host.rsplit_once(':').expect("it was made of both");
        let port = port.parse().map_err(std::io::Error::other)?;
        let stream = api::client::connect(host, port).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return handshake(stream).await;
        };
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
        handshake(tls.connect(name, stream).await?).await
    }
}

/// The URL of a request, with the signature in it.
fn signed<'a>(action: &impl S3Action<'a>) -> String {
    action.sign(SIGNED_FOR).into()
}

async fn handshake<S>(stream: S) -> std::io::Result<http1::SendRequest<StreamBody>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(std::io::Error::other)?;
    tokio::spawn(async move {
        // An error is the request's, too.
        let _ = connection.await;
    });
    Ok(sender)
}

/// `length` bytes of a file from `begin` on, read while they are sent.
async fn part_of(file: &Path, begin: u64, length: u64) -> std::io::Result<StreamBody> {
    let mut file = File::open(file).await?;
    file.seek(std::io::SeekFrom::Start(begin)).await?;
    let pieces = ReaderStream::with_capacity(file.take(length), CHUNK_BYTES);
    Ok(BodyExt::boxed(Streamed::new(pieces.map_ok(Frame::data))))
}
