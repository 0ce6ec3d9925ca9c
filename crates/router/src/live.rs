//! A table in use: with the state of its backends, which all threads share.
//!
//! The order of two steps matters. A request is first counted at its backend and then looks whether
//! the backend is draining; the control task first marks it as draining and then, when every thread
//! has the new table, looks at the count. So a count of zero means that nobody will come any more.

use routing::{BackendIndex, Budget, Load, Table};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::Notify;

/// What is known of one address, whichever tables it appears in.
#[derive(Debug, Default)]
pub struct BackendState {
    in_flight: AtomicU32,
    is_draining: AtomicBool,
    refusals: AtomicU32,
    /// Milliseconds on the router's clock.
    ejected_until: AtomicU64,
}

/// What all threads of a router share.
#[derive(Debug)]
pub struct Shared {
    begin: Instant,
    states: Mutex<BTreeMap<SocketAddr, Arc<BackendState>>>,
    /// Per worker: the newest table that it uses, by [`LiveTable::version`].
    applied: Vec<AtomicU64>,
    /// Something that an acknowledgement tells may have changed.
    pub changed: Notify,
}

/// One table with the states of its backends, in the order of the table's indexes.
#[derive(Debug)]
pub struct LiveTable {
    /// Grows with each table of this process, also when a generation goes back.
    pub version: u64,
    /// It says something, as opposed to the one before the first.
    pub is_loaded: bool,
    pub table: Table,
    states: Vec<Arc<BackendState>>,
    addresses: BTreeSet<SocketAddr>,
}

impl LiveTable {
    pub fn has(&self, addr: &SocketAddr) -> bool {
        self.addresses.contains(addr)
    }
}

impl Shared {
    pub fn new(workers: usize) -> Shared {
        Shared {
            begin: Instant::now(),
            states: Mutex::default(),
            applied: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            changed: Notify::new(),
        }
    }

    pub fn now_ms(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }

    /// Joins a table with the states of its backends and lets those it lacks drain.
    pub fn live(&self, version: u64, is_loaded: bool, table: Table) -> LiveTable {
        let mut states = self.states.lock().expect("nobody panics while holding it");
        let in_table = table
            .backends()
            .iter()
            .map(|backend| {
                let state = states.entry(backend.addr).or_default();
                state.is_draining.store(false, Ordering::SeqCst);
                state.clone()
            })
            .collect::<Vec<_>>();
        let addresses: BTreeSet<SocketAddr> = table.backends().iter().map(|backend| backend.addr).collect();
        for (addr, state) in states.iter() {
            if !addresses.contains(addr) {
                state.is_draining.store(true, Ordering::SeqCst);
            }
        }
        LiveTable {
            version,
            is_loaded,
            table,
            states: in_table,
            addresses,
        }
    }

    pub fn applied(&self, worker: usize, version: u64) {
        self.applied[worker].store(version, Ordering::SeqCst);
        self.changed.notify_one();
    }

    pub fn applied_everywhere(&self) -> u64 {
        self.applied
            .iter()
            .map(|version| version.load(Ordering::SeqCst))
            .min()
            .unwrap_or(0)
    }

    /// The draining backends that still answer requests. Forgets those that are through.
    pub fn draining(&self) -> BTreeMap<SocketAddr, u64> {
        let mut states = self.states.lock().expect("nobody panics while holding it");
        let mut busy = BTreeMap::new();
        states.retain(|addr, state| {
            if !state.is_draining.load(Ordering::SeqCst) {
                return true;
            }
            let count = state.in_flight.load(Ordering::SeqCst);
            if count > 0 {
                busy.insert(*addr, u64::from(count));
            }
            count > 0
        });
        busy
    }
}

/// A thread's view of a [`LiveTable`]. Requests hold it to their end.
#[derive(Debug)]
pub struct ThreadTable {
    pub live: Arc<LiveTable>,
    /// Per service, by index.
    budgets: RefCell<Vec<Budget>>,
}

impl ThreadTable {
    /// Services keep their retry budgets from the table before.
    pub fn new(live: Arc<LiveTable>, before: Option<&ThreadTable>) -> ThreadTable {
        let mut old = BTreeMap::new();
        if let Some(before) = before {
            for (index, budget) in before.budgets.borrow().iter().enumerate() {
                old.insert(before.live.table.service(index).name.as_str(), *budget);
            }
        }
        let budgets = (0..live.table.service_count())
            .map(|index| {
                old.get(live.table.service(index).name.as_str())
                    .copied()
                    .unwrap_or_else(Budget::full)
            })
            .collect();
        ThreadTable {
            live,
            budgets: RefCell::new(budgets),
        }
    }

    pub fn table(&self) -> &Table {
        &self.live.table
    }

    pub fn with_budget<T>(&self, service: routing::ServiceIndex, use_it: impl FnOnce(&mut Budget) -> T) -> T {
        use_it(&mut self.budgets.borrow_mut()[service])
    }

    pub fn load(&self, now_ms: u64) -> LoadNow<'_> {
        LoadNow {
            states: &self.live.states,
            now_ms,
        }
    }

    /// A connection to it was refused: passed over for a while by all threads.
    pub fn refused(&self, backend: BackendIndex, now_ms: u64) {
        let state = &self.live.states[backend];
        // Several requests meet the same refusal at once; they count as one.
        if state.ejected_until.load(Ordering::Relaxed) > now_ms {
            return;
        }
        let refusals = state.refusals.fetch_add(1, Ordering::Relaxed) + 1;
        state
            .ejected_until
            .store(now_ms + routing::ejection_ms(refusals), Ordering::Relaxed);
    }

    pub fn accepted(&self, backend: BackendIndex) {
        let state = &self.live.states[backend];
        if state.refusals.load(Ordering::Relaxed) != 0 {
            state.refusals.store(0, Ordering::Relaxed);
            state.ejected_until.store(0, Ordering::Relaxed);
        }
    }
}

pub struct LoadNow<'a> {
    states: &'a [Arc<BackendState>],
    now_ms: u64,
}

impl Load for LoadNow<'_> {
    fn in_flight(&self, backend: BackendIndex) -> u32 {
        self.states[backend].in_flight.load(Ordering::Relaxed)
    }

    fn is_ejected(&self, backend: BackendIndex) -> bool {
        self.states[backend].ejected_until.load(Ordering::Relaxed) > self.now_ms
    }
}

/// Counts a request at its backend while it lives.
pub struct InFlight {
    table: Rc<ThreadTable>,
    shared: Arc<Shared>,
    pub backend: BackendIndex,
}

impl InFlight {
    /// `None` if the backend has left the newest table.
    pub fn begin(table: &Rc<ThreadTable>, shared: &Arc<Shared>, backend: BackendIndex) -> Option<InFlight> {
        let guard = InFlight {
            table: table.clone(),
            shared: shared.clone(),
            backend,
        };
        let state = &table.live.states[backend];
        state.in_flight.fetch_add(1, Ordering::SeqCst);
        (!state.is_draining.load(Ordering::SeqCst)).then_some(guard)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let state = &self.table.live.states[self.backend];
        state.in_flight.fetch_sub(1, Ordering::SeqCst);
        if state.is_draining.load(Ordering::SeqCst) {
            self.shared.changed.notify_one();
        }
    }
}
