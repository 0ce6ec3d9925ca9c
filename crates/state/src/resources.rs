//! Providers, and what they made for apps.
//!
//! A row here says that the provider has made, or not yet removed, the thing: whoever proposes
//! [`crate::Change::PutResource`] has asked it before, and so has who proposes a deletion.

use std::sync::Arc;

use types::{AppId, Provider, ProviderId, Resource, ResourceId, Timestamp};

use crate::{State, command::Rejection, event::Subject};

impl State {
    /// By id if it is one and known, else by name.
    pub fn find_provider(&self, id_or_name: &str) -> Option<&Arc<Provider>> {
        let by_id = id_or_name
            .parse::<ProviderId>()
            .ok()
            .and_then(|id| self.providers.get(&id));
        by_id.or_else(|| {
            self.providers
                .values()
                .find(|provider| provider.name == id_or_name)
        })
    }

    pub fn resources_of(&self, app: AppId) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources
            .values()
            .filter(move |resource| resource.apps.contains(&app))
    }

    /// What has to be taken back from its provider before the app's deletion can finish.
    pub fn resources_only_of(&self, app: AppId) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources_of(app).filter(|resource| resource.apps.len() == 1)
    }

    pub(crate) fn create_provider(&mut self, at: Timestamp, provider: Provider) -> Result<(), Rejection> {
        let is_taken = self
            .providers
            .values()
            .any(|known| known.name == provider.name || known.id == provider.id);
        if is_taken {
            let message = format!("provider {:?} already exists", provider.name);
            return Err(Rejection::Exists { message });
        }
        let provider = Arc::new(provider);
        self.providers.insert(provider.id, provider.clone());
        self.emit(at, None, Subject::Provider { provider });
        Ok(())
    }

    pub(crate) fn put_resource(&mut self, at: Timestamp, mut resource: Resource) -> Result<(), Rejection> {
        if !self.providers.contains_key(&resource.provider) {
            return Err(Rejection::not_found(format!("provider {}", resource.provider)));
        }
        for app in &resource.apps {
            if !self.apps.contains_key(app) {
                return Err(unknown_app(*app));
            }
        }
        let known = self.resources.get(&resource.id).cloned();
        if let Some(known) = &known {
            if known.provider != resource.provider {
                return Err(Rejection::conflict(format!(
                    "resource {} belongs to another provider",
                    resource.id
                )));
            }
            resource.created_at = known.created_at;
            if **known == resource {
                return Ok(());
            }
        }
        let former = known.map(|known| known.apps.clone()).unwrap_or_default();
        let resource = self.keep_resource(resource);
        for app in former.iter().filter(|app| !resource.apps.contains(app)) {
            let resource = resource.clone();
            self.emit(at, Some(*app), Subject::ResourceAppDeletion { resource });
        }
        self.emit_to_apps(at, &resource, |resource| Subject::Resource { resource });
        Ok(())
    }

    pub(crate) fn add_resource_app(
        &mut self,
        at: Timestamp,
        id: ResourceId,
        app: AppId,
    ) -> Result<(), Rejection> {
        self.require_app(app)?;
        let mut resource = Resource::clone(self.require_resource(id)?);
        if resource.apps.contains(&app) {
            return Ok(());
        }
        resource.apps.push(app);
        let resource = self.keep_resource(resource);
        self.emit(at, Some(app), Subject::Resource { resource });
        Ok(())
    }

    pub(crate) fn remove_resource_app(
        &mut self,
        at: Timestamp,
        id: ResourceId,
        app: AppId,
    ) -> Result<(), Rejection> {
        let mut resource = Resource::clone(self.require_resource(id)?);
        if !resource.apps.contains(&app) {
            return Ok(());
        }
        resource.apps.retain(|used_by| *used_by != app);
        let resource = self.keep_resource(resource);
        self.emit(at, Some(app), Subject::ResourceAppDeletion { resource });
        Ok(())
    }

    /// Deleting what is gone does nothing: the caller may have been interrupted after the first time.
    pub(crate) fn delete_resource(&mut self, at: Timestamp, id: ResourceId) {
        let Some(resource) = self.resources.remove(&id) else {
            return;
        };
        for app in &resource.apps {
            if let Some(deleted) = self.deleted_apps.get(app) {
                let mut deleted = crate::DeletedApp::clone(deleted);
                deleted.resources.push(resource.clone());
                self.deleted_apps.insert(*app, Arc::new(deleted));
            }
        }
        self.emit_to_apps(at, &resource, |resource| Subject::ResourceDeletion { resource });
    }

    /// An app that goes lets go of what it shares with others.
    pub(crate) fn leave_resources(&mut self, at: Timestamp, app: AppId) -> Result<(), Rejection> {
        let shared: Vec<_> = self.resources_of(app).map(|resource| resource.id).collect();
        shared
            .into_iter()
            .try_for_each(|id| self.remove_resource_app(at, id, app))
    }

    fn require_resource(&self, id: ResourceId) -> Result<&Arc<Resource>, Rejection> {
        self.resources
            .get(&id)
            .ok_or_else(|| Rejection::not_found(format!("resource {id}")))
    }

    fn keep_resource(&mut self, resource: Resource) -> Arc<Resource> {
        let resource = Arc::new(resource);
        self.resources.insert(resource.id, resource.clone());
        resource
    }

    /// One event for each app that uses it, or one of nobody's.
    fn emit_to_apps(
        &mut self,
        at: Timestamp,
        resource: &Arc<Resource>,
        subject: impl Fn(Arc<Resource>) -> Subject,
    ) {
        if resource.apps.is_empty() {
            self.emit(at, None, subject(resource.clone()));
        }
        for app in &resource.apps {
            self.emit(at, Some(*app), subject(resource.clone()));
        }
    }
}

fn unknown_app(app: AppId) -> Rejection {
    Rejection::invalid("apps", format!("could not find app {app}"))
}
