//! Providers, resources and volumes as typed calls.

use serde_json::json;
use types::{HostId, Provider, Resource, Volume, VolumeId, VolumeReport};

use crate::{ClientError, Controller, client::escape, wire};

type Result<T> = std::result::Result<T, ClientError>;

impl Controller {
    pub async fn providers(&self) -> Result<Vec<Provider>> {
        self.client().get("/providers").await
    }

    /// `provider` is an id or a name, here and below.
    pub async fn provider(&self, provider: &str) -> Result<Provider> {
        self.client()
            .get(&format!("/providers/{}", escape(provider)))
            .await
    }

    pub async fn create_provider(&self, name: &str, url: &str) -> Result<Provider> {
        self.client()
            .post("/providers", &json!({ "name": name, "url": url }))
            .await
    }

    pub async fn app_resources(&self, app: &str) -> Result<Vec<Resource>> {
        self.client()
            .get(&format!("/apps/{}/resources", escape(app)))
            .await
    }

    /// Has the provider make something for the app. Its environment is not in the app's release yet.
    pub async fn provision_resource(&self, provider: &str, app: &str) -> Result<Resource> {
        self.client()
            .post(
                &format!("/providers/{}/resources", escape(provider)),
                &json!({ "apps": [app], "config": null }),
            )
            .await
    }

    /// Has the provider remove it; gives it as it was.
    pub async fn delete_resource(&self, provider: &str, resource: &str) -> Result<Resource> {
        let path = format!("/providers/{}/resources/{}", escape(provider), escape(resource));
        self.client().delete_json(&path).await
    }

    pub async fn volumes(&self) -> Result<Vec<Volume>> {
        self.client().get("/volumes").await
    }

    /// What a host says of a volume.
    pub async fn report_volume(&self, host: &HostId, volume: VolumeId, report: VolumeReport) -> Result<()> {
        let path = format!("/internal/hosts/{host}/volumes/{volume}");
        self.client().send(http::Method::POST, &path, Some(&report)).await
    }

    /// Makes a volume on a host, or changes the metadata of one.
    pub async fn put_volume(&self, volume: VolumeId, new: &wire::NewVolume) -> Result<Volume> {
        self.client().put(&format!("/volumes/{volume}"), new).await
    }

    /// Destroys a volume that no job has, and what is in it.
    pub async fn destroy_volume(&self, volume: VolumeId) -> Result<()> {
        self.client().delete(&format!("/volumes/{volume}")).await
    }

    pub async fn app_volumes(&self, app: &str) -> Result<Vec<Volume>> {
        self.client().get(&format!("/apps/{}/volumes", escape(app))).await
    }

    pub async fn app_volume(&self, app: &str, volume: &str) -> Result<Volume> {
        self.client()
            .get(&format!("/apps/{}/volumes/{}", escape(app), escape(volume)))
            .await
    }

    /// From then on the volume is kept, and attached to no new job.
    pub async fn decommission_volume(&self, app: &str, volume: &str) -> Result<Volume> {
        let path = format!("/apps/{}/volumes/{}/decommission", escape(app), escape(volume));
        self.client().put(&path, &json!({})).await
    }
}
