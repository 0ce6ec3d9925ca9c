//! The backend of one request, and the way to the next one when it fails.

use crate::live::{InFlight, ThreadTable};
use crate::pages::Page;
use crate::upstream::{self, Upstream};
use crate::watch::Watch;
use crate::worker::Worker;
use routing::{Attempt, BackendIndex, Failure, Forward, Load, Retry, ServiceIndex};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A kept connection this young is not in the act of being closed by an idle timeout. Requests that
/// cannot be repeated take no older one.
const FRESH: Duration = Duration::from_secs(1);

pub struct Choice {
    table: Rc<ThreadTable>,
    service: ServiceIndex,
    is_leader_only: bool,
    is_sticky: bool,
    pub keeps_alive: bool,
    sets_cookie: bool,
    in_flight: InFlight,
    attempt: u32,
    tried: Vec<BackendIndex>,
    needs_fresh: bool,
    /// How long the head of the response may take.
    pub response_limit: Option<Duration>,
}

impl Choice {
    /// `None` if everybody who could answer is leaving.
    pub fn begin(
        worker: &Worker,
        table: &Rc<ThreadTable>,
        forward: &Forward<'_>,
        is_upgrade: bool,
    ) -> Option<Choice> {
        let route = forward.route;
        let service = table.table().service(route.service);
        let response_limit = match service.response_timeout_ms {
            _ if is_upgrade => None,
            Some(0) => None,
            Some(limit_ms) => Some(Duration::from_millis(limit_ms)),
            None => Some(worker.config.timeouts.response),
        };
        table.with_budget(route.service, |budget| budget.earn());
        let mut tried = Vec::new();
        let mut backend = forward.backend;
        let in_flight = loop {
            if let Some(in_flight) = InFlight::begin(table, &worker.shared, backend) {
                break in_flight;
            }
            tried.push(backend);
            let load = table.load(worker.now_ms());
            backend = routing::choose(
                table.table(),
                route.service,
                route.is_leader_only,
                &load,
                worker.random(),
                &tried,
            )?;
        };
        Some(Choice {
            table: table.clone(),
            service: route.service,
            is_leader_only: route.is_leader_only,
            is_sticky: route.is_sticky,
            keeps_alive: route.keeps_alive,
            sets_cookie: forward.sets_cookie || (route.is_sticky && !tried.is_empty()),
            in_flight,
            attempt: 1,
            tried,
            needs_fresh: false,
            response_limit,
        })
    }

    /// A connection to the backend, or to another one if it refuses.
    pub async fn connect(
        &mut self,
        worker: &Worker,
        watch: &Watch,
        is_idempotent: bool,
    ) -> Result<Upstream, Page> {
        loop {
            let backend = self.in_flight.backend;
            let addr = self.table.table().backend(backend).addr;
            if self.keeps_alive && !self.needs_fresh {
                let idle_max = worker.config.timeouts.backend_idle;
                let age_max = if is_idempotent {
                    idle_max
                } else {
                    idle_max.min(FRESH)
                };
                if let Some(upstream) = worker.pool.take(addr, age_max) {
                    return Ok(upstream);
                }
            }
            let limit = match self.has_other(worker) {
                true => worker.config.timeouts.connect_first,
                false => worker.config.timeouts.connect,
            };
            match watch.within(limit, upstream::connect(addr)).await {
                Ok(Ok(upstream)) => {
                    self.table.accepted(backend);
                    return Ok(upstream);
                }
                Ok(Err(error)) => tracing::debug!(backend = %addr, %error, "connection refused"),
                Err(_) => tracing::debug!(backend = %addr, "connection timed out"),
            }
            self.table.refused(backend, worker.now_ms());
            if !self.again(worker, Failure::NotConnected, false, is_idempotent, true) {
                return Err(Page::not_reached());
            }
        }
    }

    /// After a failure: whether to try again, with the backend to try set.
    pub fn again(
        &mut self,
        worker: &Worker,
        failure: Failure,
        was_sent: bool,
        is_idempotent: bool,
        is_replayable: bool,
    ) -> bool {
        let attempt = Attempt {
            number: self.attempt,
            failure,
            was_sent,
            is_idempotent,
            is_replayable,
        };
        if failure == Failure::Unheard {
            self.table.refused(self.in_flight.backend, worker.now_ms());
        }
        let answer = self
            .table
            .with_budget(self.service, |budget| routing::retry(&attempt, budget));
        self.attempt += 1;
        match answer {
            Retry::No(_) => false,
            Retry::FreshConnection => {
                self.needs_fresh = true;
                true
            }
            Retry::OtherBackend => self.move_on(worker),
        }
    }

    /// Whether there is a backend beside this one and those that were tried, which takes connections as far as is known.
    fn has_other(&self, worker: &Worker) -> bool {
        let own = self.in_flight.backend;
        let tried: Vec<BackendIndex> = self.tried.iter().copied().chain([own]).collect();
        let load = self.table.load(worker.now_ms());
        self.next(worker, &tried)
            .is_some_and(|backend| !load.is_ejected(backend))
    }

    /// A backend that was not tried.
    fn next(&self, worker: &Worker, tried: &[BackendIndex]) -> Option<BackendIndex> {
        routing::choose(
            self.table.table(),
            self.service,
            self.is_leader_only,
            &self.table.load(worker.now_ms()),
            worker.random(),
            tried,
        )
    }

    fn move_on(&mut self, worker: &Worker) -> bool {
        self.tried.push(self.in_flight.backend);
        loop {
            let next = self.next(worker, &self.tried);
            let Some(backend) = next else { return false };
            match InFlight::begin(&self.table, &worker.shared, backend) {
                Some(in_flight) => {
                    self.in_flight = in_flight;
                    self.sets_cookie = self.is_sticky && !self.is_leader_only;
                    return true;
                }
                None => self.tried.push(backend),
            }
        }
    }

    /// The cookie that brings the client back here.
    pub fn cookie(&self, is_tls: bool) -> Option<String> {
        if !self.sets_cookie {
            return None;
        }
        let token = &self.table.table().backend(self.in_flight.backend).sticky_token;
        let secure = if is_tls { "; Secure" } else { "" };
        Some(format!(
            "{}={token}; Path=/; HttpOnly{secure}",
            routing::COOKIE_NAME
        ))
    }

    pub fn job(&self) -> &str {
        &self.table.table().backend(self.in_flight.backend).job
    }
}

/// Milliseconds since then.
pub fn since_ms(begin: Instant) -> u64 {
    begin.elapsed().as_millis() as u64
}
