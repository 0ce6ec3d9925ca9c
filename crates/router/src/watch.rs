//! Deadlines of many connections at the price of one timer.
//!
//! Each connection notes until when it may wait; the worker's tick looks at all of them a few times
//! a second and wakes those whose time is up. A timer per wait would cost more than the request. With nothing
//! to look at the tick rests, so that an idle router sleeps: the first new watch wakes it.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeIsUp;

/// The deadline of one connection.
#[derive(Debug)]
pub struct Watch {
    begin: Instant,
    deadline_ms: Cell<u64>,
    /// Waiting for a request, so a stop may end it at once.
    is_idle: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    /// Waits for `future` no longer than `limit`.
    pub async fn within<F: Future>(&self, limit: Duration, future: F) -> Result<F::Output, TimeIsUp> {
        self.set(limit);
        let result = self.until_up(future).await;
        self.clear();
        result
    }

    /// As [`Watch::within`], for a connection with nothing to do.
    pub async fn within_idle<F: Future>(&self, limit: Duration, future: F) -> Result<F::Output, TimeIsUp> {
        self.is_idle.set(true);
        let result = self.within(limit, future).await;
        self.is_idle.set(false);
        result
    }

    /// Waits for `future` until the deadline that it may itself [`Watch::set`] and clear.
    pub async fn until_up<F: Future>(&self, future: F) -> Result<F::Output, TimeIsUp> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            if self.is_up() {
                return Poll::Ready(Err(TimeIsUp));
            }
            let mut waker = self.waker.borrow_mut();
            match &*waker {
                Some(known) if known.will_wake(cx.waker()) => {}
                _ => *waker = Some(cx.waker().clone()),
            }
            Poll::Pending
        })
        .await
    }

    /// Whether a stop may end this connection at once.
    pub fn mark_idle(&self, is_idle: bool) {
        self.is_idle.set(is_idle);
    }

    pub fn set(&self, limit: Duration) {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(NEVER);
        self.deadline_ms.set(self.now_ms().saturating_add(limit));
    }

    pub fn clear(&self) {
        self.deadline_ms.set(NEVER);
    }

    pub fn is_set(&self) -> bool {
        self.deadline_ms.get() != NEVER
    }

    fn is_up(&self) -> bool {
        let deadline = self.deadline_ms.get();
        deadline != NEVER && deadline <= self.now_ms()
    }

    fn now_ms(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// The watches of one thread.
#[derive(Debug)]
pub struct Watches {
    begin: Instant,
    all: RefCell<Vec<Weak<Watch>>>,
    /// Nobody sweeps until the next is added.
    is_resting: Cell<bool>,
    added: Notify,
}

impl Watches {
    pub fn new() -> Watches {
        Watches {
            begin: Instant::now(),
            all: RefCell::default(),
            is_resting: Cell::new(false),
            added: Notify::new(),
        }
    }

    pub fn add(&self) -> Rc<Watch> {
        let watch = Rc::new(Watch {
            begin: self.begin,
            deadline_ms: Cell::new(NEVER),
            is_idle: Cell::new(false),
            waker: RefCell::default(),
        });
        self.all.borrow_mut().push(Rc::downgrade(&watch));
        if self.is_resting.replace(false) {
            self.added.notify_one();
        }
        watch
    }

    /// None is there, as of the last [`Watches::sweep`].
    pub fn is_empty(&self) -> bool {
        self.all.borrow().is_empty()
    }

    /// Until the next is added. The caller does not sweep meanwhile.
    pub async fn rest(&self) {
        self.is_resting.set(self.is_empty());
        if self.is_resting.get() {
            self.added.notified().await;
        }
    }

    /// Wakes those whose time is up, and forgets those that are gone.
    pub fn sweep(&self) {
        let now = self.begin.elapsed().as_millis() as u64;
        self.all.borrow_mut().retain(|watch| match watch.upgrade() {
            Some(watch) => {
                if watch.deadline_ms.get() <= now {
                    watch.wake();
                }
                true
            }
            None => false,
        });
    }

    /// Lets connections without a request end now.
    pub fn end_idle(&self) {
        for watch in self.all.borrow().iter().filter_map(Weak::upgrade) {
            if watch.is_idle.get() {
                watch.deadline_ms.set(0);
                watch.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, poll};
    use std::pin::pin;

    #[tokio::test]
    async fn the_rest_lasts_until_there_is_something_to_watch() {
        let watches = Watches::new();
        let mut rest = pin!(watches.rest());
        assert_eq!(poll!(&mut rest), Poll::Pending);
        let watch = watches.add();
        assert_eq!(poll!(&mut rest), Poll::Ready(()));
        watches.sweep();
        assert!(watches.rest().now_or_never().is_some(), "it is still there");
        drop(watch);
        assert!(!watches.is_empty(), "nobody has looked");
        watches.sweep();
        assert!(watches.rest().now_or_never().is_none());
    }
}
