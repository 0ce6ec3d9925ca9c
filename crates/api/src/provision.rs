//! Shapes of providers, resources, domain migrations and collections that differ from the rows kept
//! in the store.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use types::{AppId, DomainMigration, ReleaseId, Resource, ResourceId, TlsCert};

use crate::{ClientError, Controller, client::escape};

type Result<T> = std::result::Result<T, ClientError>;

/// `POST /providers`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NewProvider {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub url: String,
}

/// `POST /providers/:provider/resources`: `config` goes to the provider as it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ResourceRequest {
    /// Ids or names.
    #[serde(default)]
    pub apps: Option<Vec<String>>,
    #[serde(default)]
    pub config: Option<serde_json::Value>,
}

/// `PUT /providers/:provider/resources/:resource`: something that the provider has made already.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ResourceUpdate {
    #[serde(default)]
    pub external_id: String,
    #[serde(default)]
    pub env: Option<BTreeMap<String, String>>,
    /// Ids or names.
    #[serde(default)]
    pub apps: Option<Vec<String>>,
}

/// What a provider answers to `POST`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioned {
    #[serde(default)]
    pub id: String,
    #[serde(default)]
    pub env: Option<BTreeMap<String, String>>,
}

/// `PUT /domain`. Without a certificate the cluster's authority makes one.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NewDomainMigration {
    #[serde(default)]
    pub old_domain: String,
    #[serde(default)]
    pub domain: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<TlsCert>,
}

/// The data of `domain_migration` events.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DomainMigrationEvent {
    pub domain_migration: DomainMigration,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// A migration as answers carry it: private keys stay in the store.
pub fn without_keys(migration: &DomainMigration) -> DomainMigration {
    let hide = |cert: &TlsCert| TlsCert {
        key: String::new(),
        ..cert.clone()
    };
    DomainMigration {
        old_tls_cert: migration.old_tls_cert.as_ref().map(hide),
        tls_cert: migration.tls_cert.as_ref().map(hide),
        ..migration.clone()
    }
}

/// What a collection deleted.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AppGarbageCollection {
    pub app_id: AppId,
    pub deleted_releases: Vec<ReleaseId>,
}

/// The data of `app_garbage_collection` events.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AppGarbageCollectionEvent {
    pub app_garbage_collection: Option<AppGarbageCollection>,
    #[serde(default)]
    pub error: String,
}

/// `PUT /apps/:app/jobs/:job`: what became of a job, as the original's scheduler reported it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct JobUpdate {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uuid: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host_id: String,
    /// The app's id or name; the path's where it is not given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub app: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    pub process_type: String,
    #[serde(default)]
    pub state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_error: Option<String>,
}

impl Controller {
    pub async fn resources(&self) -> Result<Vec<Arc<Resource>>> {
        self.client().get("/resources").await
    }

    pub async fn provider_resources(&self, provider: &str) -> Result<Vec<Resource>> {
        self.client()
            .get(&format!("/providers/{}/resources", escape(provider)))
            .await
    }

    pub async fn put_resource(
        &self,
        provider: &str,
        id: ResourceId,
        resource: &ResourceUpdate,
    ) -> Result<Resource> {
        self.client()
            .put(
                &format!("/providers/{}/resources/{id}", escape(provider)),
                resource,
            )
            .await
    }

    pub async fn add_resource_app(&self, provider: &str, id: ResourceId, app: &str) -> Result<Resource> {
        let path = format!(
            "/providers/{}/resources/{id}/apps/{}",
            escape(provider),
            escape(app)
        );
        self.client().put(&path, &serde_json::json!({})).await
    }

    pub async fn remove_resource_app(&self, provider: &str, id: ResourceId, app: &str) -> Result<Resource> {
        let path = format!(
            "/providers/{}/resources/{id}/apps/{}",
            escape(provider),
            escape(app)
        );
        self.client().delete_json(&path).await
    }

    /// Begins the collection of an app's old releases, which ends with an event.
    pub async fn collect_garbage(&self, app: &str) -> Result<()> {
        self.client()
            .send(
                http::Method::POST,
                &format!("/apps/{}/gc", escape(app)),
                None::<&()>,
            )
            .await
    }

    /// Begins the change of the cluster's domain, which ends with a second event.
    pub async fn migrate_domain(&self, migration: &NewDomainMigration) -> Result<DomainMigration> {
        self.client().put("/domain", migration).await
    }
}
