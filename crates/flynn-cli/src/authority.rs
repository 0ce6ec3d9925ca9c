//! Whom this program believes to be a cluster: what was pinned, and what the cluster's authority has signed since.
//!
//! A cluster makes its certificates anew by itself. Its authority was asked for over a connection to the pinned one,
//! so what that signs later is as good as the pin.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use api::{Controller, Trust};

use crate::config::{self, Cluster};

/// The authority is asked for again after so long, for git, which looks at its end. The next one is there a year
/// before that.
const FRESH: Duration = Duration::from_secs(30 * 24 * 3600);
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// By the pin alone.
pub fn given(cluster: &Cluster) -> Trust {
    match cluster.tls_pin.is_empty() {
        true => Trust::System,
        false => Trust::Pin(cluster.tls_pin.clone()),
    }
}

pub fn trust(cluster: &Cluster) -> Trust {
    let kept = config::ca_cert_path(&cluster.name)
        .ok()
        .and_then(|path| fs::read_to_string(path).ok())
        .filter(|pem| api::tls::pin_of_pem(pem).is_some());
    match (given(cluster), kept) {
        (Trust::Pin(pin), Some(pem)) => Trust::PinOrAuthority(pin, pem),
        (given, _) => given,
    }
}

/// Asks for the authority's certificate when the one that is kept is old. That it cannot be had now is no failure:
/// the next command asks again.
pub async fn keep_fresh(cluster: &Cluster, controller: &Controller) {
    let Ok(path) = config::ca_cert_path(&cluster.name) else {
        return;
    };
    let written = fs::metadata(&path).and_then(|file| file.modified());
    let is_old = written.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > FRESH));
    if !is_old {
        return;
    }
    if let Ok(Ok(pem)) = tokio::time::timeout(ANSWER_MAX, controller.ca_cert()).await
        && api::tls::pin_of_pem(&pem).is_some()
    {
        let _ = config::write_private(&path, pem.as_bytes());
    }
}
