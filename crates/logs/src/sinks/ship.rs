//! One sink: connects, sends, and remembers what was taken; for ever.
//!
//! ```text
//!  files ─► batch ─► connection ─► taken, and a second ago ─► cursors ─► disk
//!    ▲                   │ broke
//!    └──── rewind ◄──────┘
//! ```
//!
//! A line counts as taken when it has reached the receiver and its program had a second to do something
//! with it. Whenever a connection or this process ends, sending goes on after the last line that
//! counted; when a connection ends in a way that says that the program had not read everything, some
//! more lines are taken back, as many as can have been unread. So lines of the last moments may come
//! twice, and none is left out.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use api::sinks::SinkStatus;
use daemon::Shutdown;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use types::SyslogUrl;

use super::{
    backlog::{Backlog, Batch},
    connection::{self, Connection, Meter, Stream},
    listing::{Key, Listing},
    position::{self, Cursors, Position},
};

/// What a receiver's program may have read and not put anywhere yet.
const SETTLE_TIME: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(200);
/// Between writings of the cursors: what a power cut makes come twice.
const SAVE_INTERVAL: Duration = Duration::from_millis(500);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How long a receiver may take to read the rest and close, when this host's daemon ends.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);

pub struct Ship {
    pub url: SyslogUrl,
    pub insecure: bool,
    pub backlog: Backlog,
    pub listing: watch::Receiver<Arc<Listing>>,
    /// What was taken; others look at it, and only this task changes it.
    pub taken: watch::Sender<Arc<Cursors>>,
    pub cursors_path: PathBuf,
    pub status: Arc<Mutex<SinkStatus>>,
    pub stop: Shutdown,
}

/// Sent on a connection, and not known to be taken.
struct Sent {
    /// The connection's count when this was written.
    written: u64,
    arrived_at: Option<Instant>,
    positions: Vec<(Key, Position)>,
}

/// Counted as taken, and perhaps not read by the receiver's program after all.
struct Taken {
    written: u64,
    /// Where the logs were before.
    before: Vec<(Key, Option<Position>)>,
}

struct Flow {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    meter: Meter,
    sent: VecDeque<Sent>,
    taken: VecDeque<Taken>,
    /// Whether anything sent on this connection was taken.
    was_useful: bool,
}

/// Why a connection is not used any more.
enum End {
    Stopped,
    Broken(io::Error),
}

impl Ship {
    pub async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        let mut saved = Saved {
            cursors: self.taken.borrow().clone(),
            at: Instant::now(),
        };
        while !self.stop.is_cancelled() {
            let connected = tokio::select! {
                connected = connection::connect(&self.url, self.insecure) => connected,
                _ = self.stop.cancelled() => break,
            };
            let error = match connected {
                Ok(connection) => {
                    self.note(|status| status.connected = true);
                    let mut flow = Flow::new(connection);
                    let end = self.send(&mut flow, &mut saved).await;
                    if flow.was_useful {
                        backoff = BACKOFF_MIN;
                    }
                    self.note(|status| status.connected = false);
                    match end {
                        End::Stopped => {
                            if flow.say_goodbye().await {
                                flow.sent.drain(..).for_each(|sent| drop(self.take(sent)));
                            }
                            break;
                        }
                        End::Broken(error) => {
                            if !connection::is_clean_end(&error) {
                                self.take_back(&mut flow);
                            }
                            error
                        }
                    }
                }
                Err(error) => error,
            };
            tracing::debug!(receiver = %self.url, %error, "a log sink's receiver cannot be reached");
            self.note(|status| {
                status.last_error = error.to_string();
                status.last_error_at = Some(daemon::now());
            });
            self.backlog.rewind();
            self.save(&mut saved, true).await;
            let waiting = Instant::now() + backoff;
            backoff = (backoff * 2).min(BACKOFF_MAX);
            while Instant::now() < waiting && !self.stop.is_cancelled() {
                self.note_behind();
                tokio::select! {
                    _ = tokio::time::sleep_until(waiting.min(Instant::now() + TICK)) => {}
                    _ = self.stop.cancelled() => {}
                }
            }
        }
        self.save(&mut saved, true).await;
    }

    async fn send(&mut self, flow: &mut Flow, saved: &mut Saved) -> End {
        let Flow {
            reader,
            writer,
            meter,
            sent,
            taken,
            was_useful,
        } = flow;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answer = [0; 512];
        loop {
            let batch = self.next_batch();
            let is_empty = batch.bytes.is_empty();
            let mut writing = pin!(async {
                writer.write_all(&batch.bytes).await?;
                writer.flush().await
            });
            let mut is_stopped = false;
            // With nothing to send this waits for something to be there; else until it is written.
            loop {
                tokio::select! {
                    written = &mut writing, if !is_empty => match written {
                        Ok(()) => break,
                        Err(error) => return End::Broken(error),
                    },
                    // Receivers say nothing; what this hears is that they are gone.
                    read = reader.read(&mut answer) => match read {
                        Ok(0) => {
                            let closed = "the receiver closed the connection";
                            return End::Broken(io::Error::new(io::ErrorKind::UnexpectedEof, closed));
                        }
                        Ok(_) => {}
                        Err(error) => return End::Broken(error),
                    },
                    changed = self.listing.changed(), if is_empty => match changed {
                        Ok(()) => break,
                        Err(_) => return End::Stopped,
                    },
                    _ = tick.tick() => {
                        let settled = match settle(meter, sent) {
                            Ok(settled) => settled,
                            Err(error) => return End::Broken(error),
                        };
                        *was_useful |= !settled.is_empty();
                        taken.extend(settled.into_iter().map(|part| self.take(part)));
                        let end = taken.back().map_or(0, |part| part.written);
                        let is_old = |part: &Taken| part.written + meter.unread_bytes_max() < end;
                        while taken.front().is_some_and(is_old) {
                            taken.pop_front();
                        }
                        self.note_behind();
                        self.save(saved, false).await;
                    }
                    // Half a message would be taken for one.
                    _ = self.stop.cancelled(), if !is_stopped => {
                        is_stopped = true;
                        match tokio::time::timeout(GOODBYE_PATIENCE, &mut writing).await {
                            Ok(Ok(())) => break,
                            _ => return End::Stopped,
                        }
                    }
                }
            }
            if !batch.positions.is_empty() {
                sent.push_back(Sent {
                    written: meter.written_bytes(),
                    arrived_at: None,
                    positions: batch.positions,
                });
            }
            self.note(|status| {
                status.lines_sent += batch.lines;
                status.lines_lost += batch.lines_lost;
            });
            if is_stopped {
                return End::Stopped;
            }
        }
    }

    /// Reading files waits for disks, so it happens beside everything else.
    fn next_batch(&mut self) -> Batch {
        let listing = self.listing.borrow_and_update().clone();
        let taken = self.taken.borrow().clone();
        let backlog = &mut self.backlog;
        tokio::task::block_in_place(move || backlog.batch(&listing, &taken))
    }

    fn take(&self, sent: Sent) -> Taken {
        let mut before = Vec::with_capacity(sent.positions.len());
        self.taken.send_modify(|cursors| {
            let cursors = Arc::make_mut(cursors);
            for (key, position) in sent.positions {
                before.push((key.clone(), cursors.insert(key, position)));
            }
        });
        Taken {
            written: sent.written,
            before,
        }
    }

    /// Undoes what was counted as taken and may have been unread when the connection ended.
    fn take_back(&self, flow: &mut Flow) {
        let unread = flow.meter.unread_bytes_max();
        let end = flow.taken.back().map_or(0, |part| part.written);
        self.taken.send_modify(|cursors| {
            let cursors = Arc::make_mut(cursors);
            while let Some(part) = flow.taken.pop_back() {
                if part.written + unread < end {
                    break;
                }
                for (key, position) in part.before {
                    match position {
                        Some(position) => cursors.insert(key, position),
                        None => cursors.remove(&key),
                    };
                }
            }
        });
    }

    /// Cursors of logs that are gone are dropped on the way.
    async fn save(&self, saved: &mut Saved, is_last: bool) {
        if !is_last && saved.at.elapsed() < SAVE_INTERVAL {
            return;
        }
        let listing = self.listing.borrow().clone();
        if self.taken.borrow().keys().any(|key| !listing.contains_key(key)) && !listing.is_empty() {
            self.taken
                .send_modify(|cursors| Arc::make_mut(cursors).retain(|key, _| listing.contains_key(key)));
        }
        let now = self.taken.borrow().clone();
        saved.at = Instant::now();
        if *now == *saved.cursors {
            return;
        }
        let (path, cursors) = (self.cursors_path.clone(), now.clone());
        let written = tokio::task::spawn_blocking(move || position::write(&path, &cursors)).await;
        match written.expect("writing a file does not panic") {
            Ok(()) => saved.cursors = now,
            Err(error) => tracing::warn!(receiver = %self.url, %error, "cannot note how far a log sink is"),
        }
    }

    fn note(&self, change: impl FnOnce(&mut SinkStatus)) {
        change(&mut self.status.lock().expect("nothing panics while it holds this"));
    }

    fn note_behind(&self) {
        let (listing, taken) = (self.listing.borrow().clone(), self.taken.borrow().clone());
        let behind: u64 = listing
            .iter()
            .map(|(key, log)| log.bytes_after(&taken, key))
            .sum();
        let behind = behind.saturating_sub(self.backlog.unfinished_bytes());
        self.note(|status| status.behind_bytes = behind);
    }
}

/// What is on disk.
struct Saved {
    cursors: Arc<Cursors>,
    at: Instant,
}

impl Flow {
    fn new(connection: Connection) -> Flow {
        let (reader, writer) = tokio::io::split(connection.stream);
        Flow {
            reader,
            writer,
            meter: connection.meter,
            sent: VecDeque::new(),
            taken: VecDeque::new(),
            was_useful: false,
        }
    }

    /// Whether the receiver read everything: it closes in turn when it has come to the end.
    async fn say_goodbye(&mut self) -> bool {
        let closing = async {
            self.writer.shutdown().await?;
            let mut answer = [0; 512];
            while self.reader.read(&mut answer).await? > 0 {}
            io::Result::Ok(())
        };
        matches!(tokio::time::timeout(GOODBYE_PATIENCE, closing).await, Ok(Ok(())))
    }
}

/// What reached the receiver a while ago.
fn settle(meter: &mut Meter, sent: &mut VecDeque<Sent>) -> io::Result<Vec<Sent>> {
    let mut settled = vec![];
    if sent.is_empty() {
        return Ok(settled);
    }
    let (acknowledged, now) = (meter.acknowledged_bytes()?, Instant::now());
    for part in sent.iter_mut().filter(|part| part.written <= acknowledged) {
        part.arrived_at.get_or_insert(now);
    }
    while sent
        .front()
        .is_some_and(|part| part.arrived_at.is_some_and(|at| at.elapsed() >= SETTLE_TIME))
    {
        settled.extend(sent.pop_front());
    }
    Ok(settled)
}
