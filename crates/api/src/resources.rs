//! Providers, resources and volumes as typed calls.

use serde_json::json;
use types::{Provider, Resource, Volume};

use crate::{ClientError, Controller, client::escape};

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
