//! What operators choose for the whole cluster: `/internal/cluster/copies`, `/internal/cluster/bucket`.

use api::{
    Error,
    contents::Copies,
    objects::{BucketStatus, BucketView, ObjectError},
};
use axum::{Json, extract::State as Extract};
use state::{Change, SettingsChange};
use types::Bucket;

use super::{Shared, body::Body, error::Failure};

pub async fn copies(Extract(controller): Shared) -> Json<Copies> {
    let copies = controller.state().settings.copies;
    Json(Copies { copies })
}

pub async fn set_copies(
    Extract(controller): Shared,
    Body(new): Body<Copies>,
) -> Result<Json<Copies>, Failure> {
    let change = SettingsChange::SetCopies { copies: new.copies };
    controller.write(Change::Settings { change }).await?;
    Ok(copies(Extract(controller)).await)
}

/// Kept only if it works: what is wrong with it is told to whoever gives it.
pub async fn set_bucket(
    Extract(controller): Shared,
    Body(bucket): Body<Bucket>,
) -> Result<Json<BucketView>, Failure> {
    check_names(&bucket)?;
    let objects = controller.config.objects.as_ref();
    let objects = objects.ok_or_else(|| Error::conflict("this host knows no buckets"))?;
    let refused = |ObjectError { message, hint }| Error::validation("bucket", message).with_hint(hint);
    objects.check(&bucket).await.map_err(refused)?;
    let view = BucketView::from(&bucket);
    let change = SettingsChange::SetBucket { bucket: Some(bucket) };
    controller.write(Change::Settings { change }).await?;
    tracing::info!(
        bucket = view.url,
        endpoint = view.endpoint,
        "the cluster has a bucket"
    );
    Ok(Json(view))
}

/// What is in it stays there.
pub async fn remove_bucket(Extract(controller): Shared) -> Result<(), Failure> {
    let change = SettingsChange::SetBucket { bucket: None };
    controller.write(Change::Settings { change }).await?;
    Ok(())
}

/// How this host gets on with it, tried anew.
pub async fn bucket_here(Extract(controller): Shared) -> Json<Option<BucketStatus>> {
    let Some(objects) = &controller.config.objects else {
        return Json(None);
    };
    objects.probe().await;
    Json(objects.status())
}

/// Parts of keys and addresses, which must not be read as something else there.
fn check_names(bucket: &Bucket) -> Result<(), Error> {
    let is_name = |text: &str, more: &[u8]| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || more.contains(&byte);
        text.bytes().all(is_allowed) && !text.starts_with('.')
    };
    if !(3..=255).contains(&bucket.name.len()) || !is_name(&bucket.name, b"-._") {
        return Err(Error::validation(
            "bucket",
            format!("{:?} is no name of a bucket", bucket.name),
        ));
    }
    let is_prefix = bucket.prefix.is_empty()
        || bucket.prefix.len() <= 200
            && bucket
                .prefix
                .split('/')
                .all(|part| !part.is_empty() && is_name(part, b"-._"));
    if !is_prefix {
        let error = Error::validation("bucket", format!("{:?} is no prefix of keys", bucket.prefix));
        return Err(error.with_hint("it may have letters, digits, -, ., _ and / between these"));
    }
    if bucket.region.is_empty() || !is_name(&bucket.region, b"-") {
        return Err(Error::validation(
            "bucket",
            format!("{:?} is no region", bucket.region),
        ));
    }
    match bucket.access_key_id.is_empty() || bucket.secret_access_key.is_empty() {
        true => Err(Error::validation(
            "bucket",
            "it takes an access key and its secret",
        )),
        false => Ok(()),
    }
}
