//! Asks providers for resources, and gives them back.
//!
//! A provider is any HTTP server: `POST url` with a configuration makes something and answers its id
//! and environment, `DELETE url?id=…` removes it. A host below `.discoverd` (or any host, with the
//! scheme `discoverd+http`) is a service of the cluster, whose instances discovery names.
//!
//! What a reader would get wrong: asking and remembering are two steps, and both sides of a break
//! between them are covered. What was made and cannot be kept is given back; what was given back and
//! is not yet forgotten is given back again, which a provider answers with 404.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use api::{Client, ClientError, Code, Endpoint, Error, Trust, client::escape, provision::Provisioned};
use state::Change;
use types::{Instance, Provider, Resource, ResourceId, Uuid, check_env_key};

use crate::Controller;

/// A provider may have to start a database; the CLI says after 30 s that it still waits.
const PROVISION_TIMEOUT: Duration = Duration::from_secs(120);
const DEPROVISION_TIMEOUT: Duration = Duration::from_secs(60);
/// Of a provider's answer. It becomes environment, of which a release takes 1 MiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const EXTERNAL_ID_BYTES_MAX: usize = 4096;

/// Where a provider is, from its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    is_tls: bool,
    user: Option<(String, String)>,
    host: String,
    port: Option<u16>,
    path: String,
    /// The cluster's service that `host` stands for.
    service: Option<String>,
}

impl Address {
    pub fn parse(url: &str) -> Result<Address, Error> {
        let invalid = |reason: &str| Error::validation("url", reason);
        let (is_service, plain) = match url.strip_prefix("discoverd+") {
            Some(plain) => (true, plain),
            None => (false, url),
        };
        let uri: http::Uri = plain
            .parse()
            .map_err(|_| invalid("must be a URL such as http://db.example.com/databases"))?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(invalid("must begin with http:// or https://")),
        };
        let host = uri.host().unwrap_or_default().to_owned();
        let below_discoverd = host.strip_suffix(".discoverd");
        let service = below_discoverd.or(is_service.then_some(host.as_str()));
        let service = service.map(|name| name.strip_prefix("leader.").unwrap_or(name).to_owned());
        if host.is_empty() || service.as_ref().is_some_and(String::is_empty) {
            return Err(invalid("must name a host"));
        }
        if is_tls && service.is_some() {
            return Err(invalid("must begin with http:// for a service of the cluster"));
        }
        let user = uri
            .authority()
            .and_then(|authority| authority.as_str().rsplit_once('@'))
            .map(|(user, _)| user.split_once(':').unwrap_or((user, "")))
            .map(|(name, password)| (unescape(name), unescape(password)));
        Ok(Address {
            is_tls,
            user,
            port: uri.port_u16(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            host,
            service,
        })
    }

    /// The path by which `id` is given back.
    fn path_of(&self, id: &str) -> String {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        format!("{}{separator}id={}", self.path, escape(id))
    }
}

fn unescape(text: &str) -> String {
    let mut bytes = vec![];
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'%')
            .then(|| std::str::from_utf8(tail.get(..2)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[derive(Clone, Copy)]
enum Question<'a> {
    Provision {
        /// Of the resource that is to be: by it a provider may know the same request again.
        id: ResourceId,
        path: &'a str,
        config: &'a serde_json::Value,
    },
    Deprovision {
        path: &'a str,
    },
}

impl Question<'_> {
    async fn ask(self, client: Client) -> Result<Provisioned, ClientError> {
        match self {
            Question::Provision { id, path, config } => {
                client.with_idempotency_key(id.0).post(path, config).await
            }
            Question::Deprovision { path } => match client.delete(path).await {
                Err(error) if !error.is_not_found() => Err(error),
                _ => Ok(Provisioned::default()),
            },
        }
    }
}

/// How providers are reached, and which resources are being changed with them right now.
pub struct Providers {
    /// Discovery's own API, for services of the cluster.
    discoverd: Option<Endpoint>,
    provision_timeout: Duration,
    deprovision_timeout: Duration,
    busy: Mutex<BTreeSet<ResourceId>>,
}

/// A resource that nobody else changes meanwhile.
pub struct Busy {
    providers: Arc<Providers>,
    resource: ResourceId,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.providers
            .busy
            .lock()
            .expect("no panic while held")
            .remove(&self.resource);
    }
}

impl Providers {
    pub fn new(discoverd: Option<Endpoint>) -> Providers {
        Providers {
            discoverd,
            provision_timeout: PROVISION_TIMEOUT,
            deprovision_timeout: DEPROVISION_TIMEOUT,
            busy: Mutex::default(),
        }
    }

    /// Takes a resource for a change that has two steps.
    pub fn begin(self: &Arc<Self>, resource: ResourceId) -> Result<Busy, Error> {
        let is_free = self.busy.lock().expect("no panic while held").insert(resource);
        if !is_free {
            let message = format!("resource {resource} is being changed by another request");
            return Err(Error::conflict(message).with_hint("wait for that to end, then look again"));
        }
        Ok(Busy {
            providers: self.clone(),
            resource,
        })
    }

    async fn provision(
        &self,
        provider: &Provider,
        id: ResourceId,
        config: &serde_json::Value,
    ) -> Result<Provisioned, Error> {
        let address = Address::parse(&provider.url)?;
        let question = Question::Provision {
            id,
            path: &address.path,
            config,
        };
        let made = self
            .ask(provider, &address, self.provision_timeout, question)
            .await?;
        let odd = |what: String| {
            let message = format!("provider {:?} answered {what}", provider.name);
            Error::unavailable(message)
        };
        if made.id.len() > EXTERNAL_ID_BYTES_MAX {
            return Err(odd("an id that is too long".into()));
        }
        for (key, value) in made.env.iter().flatten() {
            check_env_key(key, value).map_err(|error| odd(format!("an environment that {error}")))?;
        }
        Ok(made)
    }

    /// What the provider does not know is gone already.
    async fn deprovision(&self, provider: &Provider, external_id: &str) -> Result<(), Error> {
        let address = Address::parse(&provider.url)?;
        let question = Question::Deprovision {
            path: &address.path_of(external_id),
        };
        self.ask(provider, &address, self.deprovision_timeout, question)
            .await
            .map(|_| ())
    }

    /// Asks the first of the provider's instances that can be reached.
    async fn ask(
        &self,
        provider: &Provider,
        address: &Address,
        timeout: Duration,
        question: Question<'_>,
    ) -> Result<Provisioned, Error> {
        let all = async {
            let mut last = None;
            for base in self.bases(provider, address).await? {
                let endpoint = Endpoint {
                    url: base,
                    key: String::new(),
                    trust: Trust::System,
                };
                let client = Client::new(&endpoint).map_err(|error| failure(provider, error))?;
                let mut client = client.with_answer_bytes_max(ANSWER_BYTES_MAX);
                if let Some((user, password)) = &address.user {
                    client = client.with_basic_auth(user, password);
                }
                match question.ask(client).await {
                    Ok(answer) => return Ok(answer),
                    // Nothing was sent, so another instance may be asked the same.
                    Err(error @ ClientError::Unreachable { .. }) => last = Some(error),
                    Err(error) => return Err(failure(provider, error)),
                }
            }
            Err(match last {
                Some(error) => failure(provider, error),
                None => {
                    let service = address.service.as_deref().unwrap_or_default();
                    let message = format!(
                        "provider {:?}: service {service:?} has no instance",
                        provider.name
                    );
                    Error::unavailable(message).with_hint("scale up the app that runs the provider")
                }
            })
        };
        tokio::time::timeout(timeout, all).await.map_err(|_| {
            let message = format!(
                "provider {:?} did not answer within {} s",
                provider.name,
                timeout.as_secs_f32()
            );
            Error::unavailable(message).with_hint("what it was asked for may still come to be there")
        })?
    }

    /// `http://HOST:PORT` of everything that may be asked.
    async fn bases(&self, provider: &Provider, address: &Address) -> Result<Vec<String>, Error> {
        let scheme = if address.is_tls { "https" } else { "http" };
        let Some(service) = &address.service else {
            let port = address.port.map(|port| format!(":{port}")).unwrap_or_default();
            return Ok(vec![format!("{scheme}://{}{port}", address.host)]);
        };
        let failed = |reason: String| {
            let message = format!(
                "provider {:?}: cannot look up service {service:?}: {reason}",
                provider.name
            );
            Error::unavailable(message)
        };
        let discoverd = self
            .discoverd
            .as_ref()
            .ok_or_else(|| failed("no discovery is configured".into()))?;
        let client = Client::new(discoverd).map_err(|error| failed(error.to_string()))?;
        let path = format!("/services/{}/instances", escape(service));
        let instances: Vec<Instance> = match client.get(&path).await {
            Ok(instances) => instances,
            Err(error) if error.is_not_found() => vec![],
            Err(error) => return Err(failed(error.to_string())),
        };
        let base = |instance: &Instance| {
            let found: std::net::SocketAddr = instance.addr.parse().ok()?;
            let port = address.port.unwrap_or(found.port());
            Some(format!("http://{}", std::net::SocketAddr::new(found.ip(), port)))
        };
        Ok(instances.iter().filter_map(base).collect())
    }
}

/// What the user is told: the provider's own words where it refused, that it is out of order otherwise.
fn failure(provider: &Provider, error: ClientError) -> Error {
    let name = &provider.name;
    match error {
        ClientError::Api(told) => match told.code {
            Code::ValidationError | Code::SyntaxError | Code::ObjectExists | Code::Conflict => Error {
                message: format!("provider {name:?}: {}", told.message),
                ..told
            },
            _ => Error::unavailable(format!("provider {name:?}: {}", told.message)).with_hint(told.hint),
        },
        ClientError::Status { status, body, .. } if (400..500).contains(&status) => {
            let words = if body.is_empty() {
                String::new()
            } else {
                format!(": {body}")
            };
            Error::invalid(format!("provider {name:?} refused with status {status}{words}"))
        }
        ClientError::NotFound => Error::invalid(format!("provider {name:?} has nothing at its URL"))
            .with_hint("is the path of the provider's URL right?"),
        ClientError::Unauthorized { .. } => {
            Error::invalid(format!("provider {name:?} does not let the platform in"))
                .with_hint("a name and a password can be in its URL: http://NAME:PASSWORD@HOST/PATH")
        }
        ClientError::Status { status, .. } => {
            Error::unavailable(format!("provider {name:?} answered status {status}"))
        }
        other => Error::unavailable(format!("provider {name:?}: {other}")),
    }
}

impl Controller {
    /// Has the provider make something and keeps it; what cannot be kept is given back.
    pub(crate) async fn provision(
        &self,
        provider: &Provider,
        apps: Vec<types::AppId>,
        config: serde_json::Value,
    ) -> Result<Resource, Error> {
        let id = ResourceId(Uuid::new_v4());
        let made = self.providers.provision(provider, id, &config).await?;
        let resource = Resource {
            id,
            provider: provider.id,
            external_id: made.id,
            env: made.env.unwrap_or_default(),
            apps,
            created_at: self.now(),
        };
        let kept = self
            .write(Change::PutResource {
                resource: resource.clone(),
            })
            .await;
        match kept {
            Ok(_) => Ok(resource),
            // Whether the row was kept is not known: taking the thing away could break the row.
            Err(error) if error.code == Code::ServiceUnavailable => {
                tracing::error!(provider = %provider.name, external_id = %resource.external_id, %error,
                    "a resource was made and perhaps not kept");
                Err(error)
            }
            Err(error) => {
                let given_back = self.providers.deprovision(provider, &resource.external_id).await;
                if let Err(problem) = given_back {
                    tracing::error!(provider = %provider.name, external_id = %resource.external_id, %problem,
                        "a resource was made, could not be kept, and was not taken back");
                }
                Err(error)
            }
        }
    }

    /// Gives a resource back to its provider and forgets it. The caller has it with [`Providers::begin`].
    pub(crate) async fn give_back(&self, resource: &Resource) -> Result<(), Error> {
        let provider = self.state().providers.get(&resource.provider).cloned();
        if let Some(provider) = provider {
            self.providers
                .deprovision(&provider, &resource.external_id)
                .await?;
        }
        self.write(Change::DeleteResource {
            resource: resource.id,
        })
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use types::{ProviderId, Timestamp};

    use super::*;

    fn provider(url: &str) -> Provider {
        Provider {
            id: ProviderId(Uuid::nil()),
            url: url.into(),
            name: "pg".into(),
            created_at: Timestamp::EPOCH,
            updated_at: Timestamp::EPOCH,
        }
    }

    fn check(url: &str, expected: &str) {
        let said = match Address::parse(url) {
            Ok(found) => format!(
                "{} {}:{:?} {} {:?} {:?}",
                if found.is_tls { "tls" } else { "plain" },
                found.host,
                found.port,
                found.path,
                found.service,
                found.user
            ),
            Err(error) => error.message,
        };
        assert_eq!(said, expected, "{url}");
    }

    #[test]
    fn a_url_says_where_to_ask_and_how() {
        check(
            "https://db.example.com/databases?plan=small",
            "tls db.example.com:None /databases?plan=small None None",
        );
        check(
            "http://postgres-api.discoverd/databases",
            r#"plain postgres-api.discoverd:None /databases Some("postgres-api") None"#,
        );
        check(
            "discoverd+http://pg-api:4456/",
            r#"plain pg-api:Some(4456) / Some("pg-api") None"#,
        );
        check(
            "http://me:p%40ss@10.0.0.1:80/x",
            r#"plain 10.0.0.1:Some(80) /x None Some(("me", "p@ss"))"#,
        );
        check("ftp://x/", "url must begin with http:// or https://");
        check("/databases", "url must begin with http:// or https://");
        check(
            "https://pg.discoverd/",
            "url must begin with http:// for a service of the cluster",
        );
        check(
            "http://",
            "url must be a URL such as http://db.example.com/databases",
        );
    }

    #[test]
    fn an_id_is_escaped_and_joins_a_query_that_is_there() {
        let plain = Address::parse("http://x/databases").unwrap();
        assert_eq!(
            plain.path_of("/databases/u:d"),
            "/databases?id=%2Fdatabases%2Fu%3Ad"
        );
        let query = Address::parse("http://x/databases?plan=a").unwrap();
        assert_eq!(query.path_of("1"), "/databases?plan=a&id=1");
    }

    /// A server that gives every request the same answer, or none.
    async fn answering(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/databases", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut silent = vec![];
            while let Ok((mut stream, _)) = listener.accept().await {
                if answer.is_empty() {
                    silent.push(stream);
                    continue;
                }
                tokio::spawn(async move {
                    let mut head = vec![0; 4096];
                    let _ = stream.read(&mut head).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        url
    }

    async fn asked(url: &str) -> String {
        let providers = Providers {
            provision_timeout: Duration::from_millis(300),
            ..Providers::new(None)
        };
        let id = ResourceId(Uuid::nil());
        let answer = providers
            .provision(&provider(url), id, &serde_json::json!({}))
            .await;
        match answer {
            Ok(made) => format!("{made:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn what_a_provider_refuses_is_said_in_its_words_and_what_is_broken_as_such() {
        let refusing = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 61\r\n\r\n\
            {\"code\":\"validation_error\",\"message\":\"no plan\",\"retry\":false}";
        let said = asked(&answering(refusing).await).await;
        assert_eq!(said, r#"validation_error: provider "pg": no plan"#);
        let broken = "HTTP/1.1 500 Oops\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let said = asked(&answering(broken).await).await;
        assert_eq!(said, r#"service_unavailable: provider "pg" answered status 500"#);
        let silent = asked(&answering("").await).await;
        assert_eq!(
            silent,
            r#"service_unavailable: provider "pg" did not answer within 0.3 s"#
        );
        let odd = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nokay";
        let said = asked(&answering(odd).await).await;
        assert!(said.contains("cannot be understood"), "{said}");
        let nobody = asked("http://127.0.0.1:1/x").await;
        assert!(
            nobody.starts_with(r#"service_unavailable: provider "pg": cannot reach"#),
            "{nobody}"
        );
        let unnamed = asked("http://pg.discoverd/x").await;
        assert!(unnamed.contains("no discovery is configured"), "{unnamed}");
    }

    #[test]
    fn a_resource_is_changed_by_one_request_at_a_time() {
        let providers = Arc::new(Providers::new(None));
        let id = ResourceId(Uuid::nil());
        let first = providers.begin(id).unwrap();
        assert!(providers.begin(id).is_err());
        drop(first);
        assert!(providers.begin(id).is_ok());
    }
}
