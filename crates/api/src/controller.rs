//! The controller's API as typed calls, for the CLI and for components.

use futures::stream::BoxStream;
use hyper_util::rt::TokioIo;
use types::{
    App, AppId, Artifact, ArtifactId, Deployment, Event, Formation, HostId, JobId, Release, ReleaseId,
    ScaleRequest,
};

use crate::{
    Client, ClientError, Endpoint,
    client::escape,
    host::{Assignment, HostReport, JobReport, RouterReport},
    logs, wire,
};

/// An attached connection, past the upgrade.
pub type Attached = TokioIo<hyper::upgrade::Upgraded>;

type Result<T> = std::result::Result<T, ClientError>;

/// A client of the controller. `app` arguments are ids or names.
#[derive(Clone)]
pub struct Controller {
    client: Client,
}

impl Controller {
    pub fn new(endpoint: &Endpoint) -> Result<Controller> {
        Ok(Controller {
            client: Client::new(endpoint)?,
        })
    }

    /// For paths that have no method here.
    pub fn client(&self) -> &Client {
        &self.client
    }

    pub async fn status(&self) -> Result<wire::Status> {
        let answer: wire::StatusAnswer = self.client.get("/.well-known/status").await?;
        Ok(answer.data)
    }

    /// The cluster's authority, PEM.
    pub async fn ca_cert(&self) -> Result<String> {
        self.client.text("/ca-cert").await
    }

    // Apps

    pub async fn apps(&self) -> Result<Vec<App>> {
        self.client.get("/apps").await
    }

    pub async fn app(&self, app: &str) -> Result<App> {
        self.client.get(&format!("/apps/{}", escape(app))).await
    }

    pub async fn create_app(&self, app: &wire::NewApp) -> Result<App> {
        self.client.post("/apps", app).await
    }

    pub async fn update_app(&self, app: &str, update: &wire::AppUpdate) -> Result<App> {
        self.client.post(&format!("/apps/{}", escape(app)), update).await
    }

    /// Replaces the metadata, which may thereby become empty.
    pub async fn update_app_meta(&self, app: &str, update: &wire::AppUpdate) -> Result<App> {
        self.client
            .post(&format!("/apps/{}/meta", escape(app)), update)
            .await
    }

    /// Begins the deletion, which ends with an `app_deletion` event.
    pub async fn delete_app(&self, app: &str) -> Result<()> {
        self.client.delete(&format!("/apps/{}", escape(app))).await
    }

    // Artifacts and releases

    pub async fn create_artifact(&self, artifact: &wire::NewArtifact) -> Result<Artifact> {
        self.client.post("/artifacts", artifact).await
    }

    pub async fn artifact(&self, id: ArtifactId) -> Result<Artifact> {
        self.client.get(&format!("/artifacts/{id}")).await
    }

    pub async fn create_release(&self, release: &wire::NewRelease) -> Result<Release> {
        self.client.post("/releases", release).await
    }

    pub async fn release(&self, id: ReleaseId) -> Result<Release> {
        self.client.get(&format!("/releases/{id}")).await
    }

    /// Newest first.
    pub async fn app_releases(&self, app: &str) -> Result<Vec<Release>> {
        self.client.get(&format!("/apps/{}/releases", escape(app))).await
    }

    pub async fn app_release(&self, app: &str) -> Result<Release> {
        self.client.get(&format!("/apps/{}/release", escape(app))).await
    }

    pub async fn set_app_release(&self, app: &str, id: ReleaseId) -> Result<Release> {
        self.client
            .put(
                &format!("/apps/{}/release", escape(app)),
                &wire::ReleaseRef { id },
            )
            .await
    }

    pub async fn delete_release(&self, app: &str, id: ReleaseId) -> Result<()> {
        self.client
            .delete(&format!("/apps/{}/releases/{id}", escape(app)))
            .await
    }

    // Formations, scale, deployments

    pub async fn formation(&self, app: &str, release: ReleaseId) -> Result<Formation> {
        self.client
            .get(&format!("/apps/{}/formations/{release}", escape(app)))
            .await
    }

    pub async fn formations(&self, app: &str) -> Result<Vec<Formation>> {
        self.client
            .get(&format!("/apps/{}/formations", escape(app)))
            .await
    }

    pub async fn scale(
        &self,
        app: &str,
        release: ReleaseId,
        request: &wire::NewScaleRequest,
    ) -> Result<ScaleRequest> {
        self.client
            .put(&format!("/apps/{}/scale/{release}", escape(app)), request)
            .await
    }

    pub async fn deploy(&self, app: &str, id: ReleaseId) -> Result<Deployment> {
        self.client
            .post(&format!("/apps/{}/deploy", escape(app)), &wire::ReleaseRef { id })
            .await
    }

    pub async fn deployments(&self, app: &str) -> Result<Vec<Deployment>> {
        self.client
            .get(&format!("/apps/{}/deployments", escape(app)))
            .await
    }

    pub async fn deployment(&self, id: types::DeploymentId) -> Result<Deployment> {
        self.client.get(&format!("/deployments/{id}")).await
    }

    // Jobs

    pub async fn jobs(&self, app: &str) -> Result<Vec<wire::Job>> {
        self.client.get(&format!("/apps/{}/jobs", escape(app))).await
    }

    pub async fn job(&self, app: &str, job: &str) -> Result<wire::Job> {
        self.client
            .get(&format!("/apps/{}/jobs/{}", escape(app), escape(job)))
            .await
    }

    pub async fn run_job(&self, app: &str, job: &wire::NewJob) -> Result<wire::Job> {
        self.client
            .post(&format!("/apps/{}/jobs", escape(app)), job)
            .await
    }

    pub async fn run_job_attached(&self, app: &str, job: &wire::NewJob) -> Result<Attached> {
        self.client
            .attach(&format!("/apps/{}/jobs", escape(app)), job)
            .await
    }

    pub async fn exec(&self, app: &str, job: &str, exec: &wire::NewExec) -> Result<Attached> {
        self.client
            .attach(&format!("/apps/{}/jobs/{}/exec", escape(app), escape(job)), exec)
            .await
    }

    pub async fn stop_job(&self, app: &str, job: &str) -> Result<()> {
        self.client
            .delete(&format!("/apps/{}/jobs/{}", escape(app), escape(job)))
            .await
    }

    // Routes

    pub async fn routes(&self) -> Result<Vec<wire::RouteView>> {
        self.client.get("/routes").await
    }

    pub async fn app_routes(&self, app: &str) -> Result<Vec<wire::RouteView>> {
        self.client.get(&format!("/apps/{}/routes", escape(app))).await
    }

    /// `id` is `http/UUID` or `tcp/UUID`.
    pub async fn route(&self, app: &str, id: &str) -> Result<wire::RouteView> {
        self.client
            .get(&format!("/apps/{}/routes/{id}", escape(app)))
            .await
    }

    pub async fn create_route(&self, app: &str, route: &wire::NewRoute) -> Result<wire::RouteView> {
        self.client
            .post(&format!("/apps/{}/routes", escape(app)), route)
            .await
    }

    pub async fn update_route(&self, app: &str, id: &str, route: &wire::NewRoute) -> Result<wire::RouteView> {
        self.client
            .put(&format!("/apps/{}/routes/{id}", escape(app)), route)
            .await
    }

    pub async fn delete_route(&self, app: &str, id: &str) -> Result<()> {
        self.client
            .delete(&format!("/apps/{}/routes/{id}", escape(app)))
            .await
    }

    // Events and logs

    /// Follows events, of one app or of all; with `since` those after that id first.
    pub async fn events(
        &self,
        app: Option<&str>,
        object_types: &[&str],
        since: Option<u64>,
    ) -> Result<BoxStream<'static, Result<Event>>> {
        let mut query = vec![];
        if let Some(app) = app {
            query.push(format!("app_id={}", escape(app)));
        }
        if !object_types.is_empty() {
            query.push(format!("object_types={}", escape(&object_types.join(","))));
        }
        if let Some(id) = since {
            query.push(format!("since_id={id}&past=true"));
        }
        self.client.events(&format!("/events?{}", query.join("&"))).await
    }

    /// An app's log; ends by itself unless the query follows.
    pub async fn log(
        &self,
        app: &str,
        query: &logs::Query,
    ) -> Result<BoxStream<'static, Result<logs::SseLogChunk>>> {
        let mut parameters = vec![];
        if query.follow {
            parameters.push("follow=true".to_owned());
        }
        if let Some(lines) = query.lines {
            parameters.push(format!("lines={lines}"));
        }
        for (name, value) in [
            ("job_id", &query.job_id),
            ("process_type", &query.process_type),
            ("stream_types", &query.stream_types),
        ] {
            if let Some(value) = value {
                parameters.push(format!("{name}={}", escape(value)));
            }
        }
        self.client
            .events(&format!("/apps/{}/log?{}", escape(app), parameters.join("&")))
            .await
    }

    // Between the platform's own parts

    pub async fn report_host(&self, host: &HostId, report: &HostReport) -> Result<()> {
        self.client
            .send(
                http::Method::PUT,
                &format!("/internal/hosts/{host}"),
                Some(report),
            )
            .await
    }

    pub async fn assignments(&self, host: &HostId) -> Result<BoxStream<'static, Result<Assignment>>> {
        self.client
            .events(&format!("/internal/hosts/{host}/assignments"))
            .await
    }

    /// Answers 404 for a job that the controller does not know: the host may forget it.
    pub async fn report_job(&self, host: &HostId, job: JobId, report: &JobReport) -> Result<()> {
        let path = format!("/internal/hosts/{host}/jobs/{job}");
        self.client.send(http::Method::POST, &path, Some(report)).await
    }

    /// Layers that a release, a job or an artifact younger than the grace refers to, by digest.
    pub async fn layers_in_use(&self) -> Result<Vec<String>> {
        self.client.get("/internal/layers").await
    }

    /// Ids of all apps that exist: what is kept on disk for others can go.
    pub async fn app_ids(&self) -> Result<Vec<AppId>> {
        self.client.get("/internal/apps").await
    }

    /// Changes what is known of a service; gives it as it is then.
    pub async fn update_service(
        &self,
        service: &str,
        update: &crate::discoverd::ServiceUpdate,
    ) -> Result<Option<types::ServiceRow>> {
        self.client
            .post(&format!("/internal/services/{}", escape(service)), update)
            .await
    }

    pub async fn report_router(&self, router: &str, report: &RouterReport) -> Result<()> {
        let path = format!("/internal/routers/{}", escape(router));
        self.client.send(http::Method::POST, &path, Some(report)).await
    }
}
