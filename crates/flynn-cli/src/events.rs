//! Following the controller's events over broken connections.
//!
//! A follower names the last event it saw when it connects again, so nothing is lost. If the
//! connection breaks before the first event there is nothing to name: the caller is told by
//! [`Next::Reconnected`] and looks at the object itself.

use std::time::Duration;

use api::{ClientError, Controller};
use futures::{StreamExt, stream::BoxStream};
use types::Event;

use crate::failure::{Failure, Result};

/// How long the controller may be away before following is given up: a restart takes seconds.
const ABSENCE_MAX: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

pub struct Follower {
    controller: Controller,
    /// `None` for all apps.
    app: Option<String>,
    object_types: &'static [&'static str],
    last: Option<u64>,
    stream: Option<BoxStream<'static, std::result::Result<Event, ClientError>>>,
}

#[derive(Debug)]
pub enum Next {
    Event(Event),
    /// Events may have been missed.
    Reconnected,
}

impl Follower {
    /// Follows what happens to an app from now on. Open it before asking for a change: what the
    /// change brings about is then not missed.
    pub async fn open(
        controller: &Controller,
        app: &str,
        object_types: &'static [&'static str],
    ) -> Result<Follower> {
        Follower::begin(controller, Some(app), object_types).await
    }

    /// The same for what belongs to no app, or for all apps.
    pub async fn open_all(
        controller: &Controller,
        object_types: &'static [&'static str],
    ) -> Result<Follower> {
        Follower::begin(controller, None, object_types).await
    }

    async fn begin(
        controller: &Controller,
        app: Option<&str>,
        object_types: &'static [&'static str],
    ) -> Result<Follower> {
        let stream = controller.events(app, object_types, None).await?;
        Ok(Follower {
            controller: controller.clone(),
            app: app.map(str::to_owned),
            object_types,
            last: None,
            stream: Some(stream),
        })
    }

    /// The next event. May be dropped while it waits, and called again.
    pub async fn next(&mut self) -> Result<Next> {
        while let Some(stream) = &mut self.stream {
            match stream.next().await {
                // What was sent before the break may be sent again after it.
                Some(Ok(event)) if self.last.is_some_and(|last| event.id <= last) => {}
                Some(Ok(event)) => {
                    self.last = Some(event.id);
                    return Ok(Next::Event(event));
                }
                Some(Err(error)) if !error.may_retry() => {
                    self.stream = None;
                    return Err(error.into());
                }
                Some(Err(_)) | None => self.stream = None,
            }
        }
        self.reconnect().await?;
        Ok(Next::Reconnected)
    }

    async fn reconnect(&mut self) -> Result<()> {
        let connect = async {
            loop {
                match self
                    .controller
                    .events(self.app.as_deref(), self.object_types, self.last)
                    .await
                {
                    Ok(stream) => return Ok(stream),
                    Err(error) if error.may_retry() => tokio::time::sleep(PAUSE).await,
                    Err(error) => return Err(Failure::from(error)),
                }
            }
        };
        let stream = tokio::time::timeout(ABSENCE_MAX, connect).await.map_err(|_| {
            Failure::new("the controller cannot be reached any more")
                .with_hint("what was asked for goes on without it")
        })??;
        self.stream = Some(stream);
        Ok(())
    }
}
