//! Follows the controller's services, for ever.

use std::{sync::Arc, time::Duration};

use api::{Controller, host::ServicesView};
use daemon::Shutdown;
use discovery::{Service, Zone};
use futures::StreamExt;

use crate::Shared;

const RETRY: Duration = Duration::from_millis(200);

pub async fn run(shared: Arc<Shared>, controller: Controller, shutdown: Shutdown) {
    let follow = async {
        loop {
            match controller
                .client()
                .events::<ServicesView>("/internal/services")
                .await
            {
                Ok(mut lists) => {
                    while let Some(Ok(views)) = lists.next().await {
                        let ingress = views.ingress.into_iter();
                        shared.set_zone(Zone {
                            domains: views.domains.clone(),
                            hosts: ingress
                                .map(|view| (view.host.to_string(), view.addresses))
                                .collect(),
                        });
                        shared.set_domains(views.domains);
                        let services = views.services.into_iter().map(|view| {
                            (
                                view.name,
                                Service {
                                    instances: view.instances,
                                    leader: view.leader,
                                    row: view.row,
                                },
                            )
                        });
                        shared.change(|registry| registry.set_cluster(services));
                    }
                }
                Err(error) => tracing::debug!(%error, "the controller does not answer"),
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        _ = follow => {}
        _ = shutdown.cancelled() => {}
    }
}
