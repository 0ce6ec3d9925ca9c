//! What the fake controller keeps, and what it is told to do wrong.

use api::{
    logs::Message,
    wire::{Job, NewRelease, NewRoute, RouteView},
};
use serde_json::{Value, json};
use types::{App, Deployment, Event, Formation, Release, Timestamp};

use crate::fake::Failure;

/// How deployments go.
#[derive(Clone, Default)]
pub enum Deploys {
    /// At once, as those of an app without running jobs.
    #[default]
    AtOnce,
    ByEvents,
    Fail(String),
    /// The event stream ends before the last event.
    BreakBeforeTheEnd,
}

#[derive(Default)]
pub struct State {
    pub count: u64,
    pub apps: Vec<App>,
    pub releases: Vec<Release>,
    pub formations: Vec<Formation>,
    pub jobs: Vec<Job>,
    pub deployments: Vec<Deployment>,
    pub routes: Vec<RouteView>,
    pub events: Vec<Event>,
    pub deploys: Deploys,
    /// Why scaled-up jobs wait; they start where this is empty.
    pub scale_waits_for: String,
    /// Another scale takes the place of each.
    pub is_scaled_by_others: bool,
    /// What each connection to the log gives, the last one also later ones.
    pub logs: Vec<Vec<Message>>,
    /// Queries for the log, as they came.
    pub log_queries: Vec<String>,
    /// Bodies of requests that change something, with their paths.
    pub requests: Vec<(String, Value)>,
    pub artifacts: Vec<Value>,
    pub providers: Vec<Value>,
    pub resources: Vec<Value>,
    pub volumes: Vec<Value>,
    pub sinks: Vec<Value>,
    pub hosts: Vec<Value>,
    pub layers: std::collections::BTreeMap<String, Vec<u8>>,
    /// What a dry run answers.
    pub preview: Value,
}

impl State {
    pub fn next_id(&mut self) -> String {
        self.count += 1;
        format!("00000000-0000-4000-8000-{:012}", self.count)
    }

    /// Far in the future: what is shown as an age is always less than a second.
    pub fn now(&self) -> Timestamp {
        let start: Timestamp = "2100-01-01T12:00:00Z".parse().unwrap();
        Timestamp::from_micros(start.as_micros() + self.count as i64 * 1000)
    }

    pub fn create_app(&mut self, name: String) -> App {
        let id = self.next_id();
        let name = if name.is_empty() {
            "clams-reassure-norwich".into()
        } else {
            name
        };
        let app: App = serde_json::from_value(json!({
            "id": id, "name": name, "meta": {}, "strategy": "all-at-once", "deploy_timeout": 120,
            "created_at": self.now(), "updated_at": self.now(),
        }))
        .unwrap();
        self.apps.insert(0, app.clone());
        let (service, domain) = (format!("{name}-web"), format!("{name}.flynn.test"));
        let route = json!({ "type": "http", "service": service, "domain": domain, "path": "/", "drain_backends": true });
        self.put_route(&app, serde_json::from_value(route).unwrap(), None);
        app
    }

    pub fn create_release(&mut self, new: NewRelease) -> Release {
        let mut release = serde_json::to_value(new).unwrap();
        release["id"] = json!(self.next_id());
        release["created_at"] = json!(self.now());
        let release: Release = serde_json::from_value(release).unwrap();
        self.releases.insert(0, release.clone());
        release
    }

    pub fn put_route(&mut self, app: &App, new: NewRoute, id: Option<&str>) -> RouteView {
        let mut route = serde_json::to_value(new).unwrap();
        route["id"] = json!(id.map_or_else(|| self.next_id(), str::to_owned));
        route["parent_ref"] = json!(format!("controller/apps/{}", app.id));
        route["created_at"] = json!(self.now());
        route["updated_at"] = json!(self.now());
        if route["type"] == "tcp" && route.get("port").is_none() {
            route["port"] = json!(3000);
        }
        let mut view: RouteView = serde_json::from_value(route).unwrap();
        // Private keys are not given back, and a change without a certificate keeps the old one.
        match &mut view.certificate {
            Some(certificate) => certificate.key.clear(),
            None => {
                let old = self.routes.iter().find(|known| known.route.id == view.route.id);
                view.certificate = old.and_then(|old| old.certificate.clone());
            }
        }
        self.routes.retain(|known| known.route.id != view.route.id);
        self.routes.insert(0, view.clone());
        view
    }

    pub fn app(&self, name: &str) -> Result<&App, Failure> {
        self.apps
            .iter()
            .find(|app| app.name == name || app.id.to_string() == name)
            .ok_or(Failure::NotFound)
    }
}
