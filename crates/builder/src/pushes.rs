//! Pushes under way: which hook belongs to which, and one at a time per app.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::Instant,
};

use daemon::Shutdown;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::watch,
};
use types::{App, AppId};

use crate::{
    Builder,
    copies::Accepted,
    failure::Failure,
    hook::{QUESTION_BYTES_MAX, Question, STATUS, TEXT},
    output::{self, Lines, Output},
    push,
};

#[derive(Clone)]
pub struct Pushes {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    building: watch::Sender<usize>,
}

impl Default for Pushes {
    fn default() -> Self {
        Pushes {
            inner: Arc::new(Inner {
                state: Mutex::default(),
                building: watch::Sender::new(0),
            }),
        }
    }
}

#[derive(Default)]
struct State {
    /// By the token that git's hook is given.
    known: HashMap<String, Known>,
    active: HashMap<AppId, Active>,
}

struct Known {
    app: App,
    /// Once git may carry it out.
    accepted: Option<Accepted>,
}

#[derive(Clone)]
pub struct Active {
    pub since: Instant,
    pub commit: String,
}

/// A request of git that may run a hook; forgotten with its connection.
pub struct Registered {
    pushes: Weak<Inner>,
    token: String,
}

impl Registered {
    pub fn token(&self) -> &str {
        &self.token
    }

    /// What the hook's answer left, to be settled when git has ended; can be taken once.
    pub fn take_accepted(&self) -> Option<Accepted> {
        let inner = self.pushes.upgrade()?;
        let mut state = inner.state.lock().expect("no panic while locked");
        state.known.get_mut(&self.token)?.accepted.take()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(inner) = self.pushes.upgrade() {
            let mut state = inner.state.lock().expect("no panic while locked");
            let known = state.known.remove(&self.token);
            // It may have a turn, whose end takes the lock.
            drop(state);
            drop(known);
        }
    }
}

/// The right to build an app.
pub struct Turn {
    inner: Arc<Inner>,
    app: AppId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.inner
            .state
            .lock()
            .expect("no panic while locked")
            .active
            .remove(&self.app);
        self.inner.building.send_modify(|count| *count -= 1);
    }
}

impl Pushes {
    pub fn register(&self, app: App) -> Registered {
        let token = uuid::Uuid::new_v4().to_string();
        self.inner
            .state
            .lock()
            .expect("no panic while locked")
            .known
            .insert(token.clone(), Known { app, accepted: None });
        Registered {
            pushes: Arc::downgrade(&self.inner),
            token,
        }
    }

    fn of_token(&self, token: &str) -> Option<App> {
        self.inner
            .state
            .lock()
            .expect("no panic while locked")
            .known
            .get(token)
            .map(|known| known.app.clone())
    }

    /// Lets a push keep what it has until git has carried it out, if anybody still waits for that.
    fn accept(&self, token: &str, accepted: Accepted) {
        let mut state = self.inner.state.lock().expect("no panic while locked");
        let replaced = match state.known.get_mut(token) {
            Some(known) => known.accepted.replace(accepted),
            None => Some(accepted),
        };
        drop(state);
        drop(replaced);
    }

    /// Whether a push of the app has its turn.
    pub fn is_active(&self, app: AppId) -> bool {
        let state = self.inner.state.lock().expect("no panic while locked");
        state.active.contains_key(&app)
    }

    /// The app's turn, or who has it.
    pub fn begin(&self, app: AppId, commit: &str) -> Result<Turn, Active> {
        let mut state = self.inner.state.lock().expect("no panic while locked");
        if let Some(active) = state.active.get(&app) {
            return Err(active.clone());
        }
        state.active.insert(
            app,
            Active {
                since: Instant::now(),
                commit: commit.to_owned(),
            },
        );
        self.inner.building.send_modify(|count| *count += 1);
        Ok(Turn {
            inner: self.inner.clone(),
            app,
        })
    }

    /// Calls `sweep` if git receives nothing for the app, and does not let it begin meanwhile.
    pub fn while_idle<T>(&self, app: AppId, sweep: impl FnOnce() -> T) -> Option<T> {
        let state = self.inner.state.lock().expect("no panic while locked");
        let is_idle = !state.known.values().any(|known| known.app.id == app);
        is_idle.then(sweep)
    }

    pub async fn none_left(&self) {
        let _ = self
            .inner
            .building
            .subscribe()
            .wait_for(|count| *count == 0)
            .await;
    }
}

/// Answers hooks until the daemon stops.
pub async fn serve(builder: Arc<Builder>, listener: UnixListener) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = builder.shutdown.cancelled() => return,
        };
        match accepted {
            Ok((connection, _)) => {
                tokio::spawn(answer(builder.clone(), connection));
            }
            Err(error) => {
                tracing::warn!(%error, "a git hook cannot be answered");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn answer(builder: Arc<Builder>, connection: UnixStream) {
    let (reader, mut writer) = connection.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let limit = QUESTION_BYTES_MAX as u64;
    if (&mut reader)
        .take(limit)
        .read_until(b'\n', &mut line)
        .await
        .is_err()
    {
        return;
    }
    let (out, mut lines) = output::channel();
    let pusher_left = Shutdown::new();
    let work = tokio::spawn(carry_out(builder, line, out, pusher_left.clone()));
    let left = async {
        // The hook says nothing more: whatever comes here is its end.
        let mut rest = [0u8; 1];
        let _ = reader.read(&mut rest).await;
    };
    let told = async {
        while let Some(line) = lines.next().await {
            write_lines(&mut writer, line, &mut lines).await?;
        }
        std::io::Result::Ok(())
    };
    tokio::select! {
        told = told => {
            if told.is_err() {
                pusher_left.cancel();
            }
        }
        _ = left => pusher_left.cancel(),
    }
    let status = match work.await {
        Ok(status) => status,
        Err(panic) => {
            tracing::error!(%panic, "a push ended unexpectedly");
            let _ = writer
                .write_all(b"> !     The push failed for a reason of the platform's own.\n")
                .await;
            1
        }
    };
    let _ = writer
        .write_all(format!("{}{status}\n", STATUS as char).as_bytes())
        .await;
}

/// What is ready goes in one piece, for a build that says a lot.
async fn write_lines(writer: &mut OwnedWriteHalf, first: Vec<u8>, lines: &mut Lines) -> std::io::Result<()> {
    const PIECE_BYTES: usize = 32 << 10;
    let mut piece = Vec::new();
    let mut next = Some(first);
    while let Some(line) = next {
        piece.push(TEXT);
        piece.extend_from_slice(&line);
        piece.push(b'\n');
        next = if piece.len() < PIECE_BYTES {
            lines.next_ready()
        } else {
            None
        };
    }
    writer.write_all(&piece).await
}

/// Gives the hook's exit status. All lines are sent when `out` is dropped.
async fn carry_out(builder: Arc<Builder>, question: Vec<u8>, out: Output, pusher_left: Shutdown) -> u8 {
    let carried = async {
        let question: Question = serde_json::from_slice(&question)?;
        let app = builder.pushes.of_token(&question.push);
        let app = app.ok_or_else(|| Failure::refused(["This push is not known any more; push again."]))?;
        let push = question.push.clone();
        let accepted = push::receive(&builder, &app, question, &out, &pusher_left).await?;
        builder.pushes.accept(&push, accepted);
        Ok(())
    };
    match carried.await {
        Ok(()) => 0,
        Err(failure) => {
            match &failure {
                Failure::Broken(error) => tracing::error!(error = format!("{error:#}"), "a push failed"),
                other => tracing::debug!(failure = ?other, "a push was refused"),
            }
            failure.tell(&out);
            1
        }
    }
}
