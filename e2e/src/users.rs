//! Users of an app on several hosts, each with a way of finding a host, and all that happened to them.
//!
//! A user comes, asks for a page a few times, a moment apart, by the address that was found first, and goes;
//! another comes. Every request is a connection of its own, so that nothing is hidden by one that is kept.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// How long a user waits for a connection, and for an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Who knows only one address has no reason to give it up soon; browsers take longer.
const ONLY_ADDRESS_TIMEOUT: Duration = Duration::from_secs(15);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// How users find a host.
#[derive(Debug, Clone, Copy)]
pub enum Finding {
    /// Health-checked names: an address that does not answer so many checks in a row is left out, and what was
    /// asked for once is believed for a while.
    Dns {
        check_every: Duration,
        checks: u32,
        time_to_live: Duration,
    },
    /// All addresses, one after the other until one takes the connection: browsers, and load balancers.
    TryNext,
    /// Always this host.
    Only(usize),
}

impl Finding {
    /// What the article's name service does with its fast checks and usual life of an answer.
    pub const ROUTE_53: Finding = Finding::Dns {
        check_every: Duration::from_secs(10),
        checks: 3,
        time_to_live: Duration::from_secs(60),
    };
}

#[derive(Debug, Clone)]
pub struct Load {
    /// Host numbers from one, with `IP:PORT`.
    pub hosts: Vec<(usize, SocketAddr)>,
    pub domain: String,
    pub finding: Finding,
    /// At the same time.
    pub users: usize,
    /// Of each user, and how far apart.
    pub requests: usize,
    pub pause: Duration,
}

#[derive(Debug, Clone)]
pub struct Request {
    pub user: u64,
    /// Since the load began.
    pub at: Duration,
    pub took: Duration,
    pub host: usize,
    pub error: Option<String>,
}

pub struct Users {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    load: Load,
    began: Instant,
    stop: AtomicBool,
    count: AtomicU64,
    requests: Mutex<Vec<Request>>,
    /// What names answer, as those who ask believe.
    answer: Mutex<Vec<usize>>,
}

impl Users {
    pub fn start(load: Load) -> Users {
        let shared = Arc::new(Shared {
            answer: Mutex::new(load.hosts.iter().map(|(host, _)| *host).collect()),
            began: Instant::now(),
            stop: AtomicBool::new(false),
            count: AtomicU64::new(0),
            requests: Mutex::new(vec![]),
            load,
        });
        let mut threads: Vec<_> = (0..shared.load.users)
            .map(|_| {
                let shared = shared.clone();
                std::thread::spawn(move || shared.come_and_go())
            })
            .collect();
        if let Finding::Dns { .. } = shared.load.finding {
            let shared = shared.clone();
            threads.push(std::thread::spawn(move || shared.answer_names()));
        }
        Users { shared, threads }
    }

    /// Time since the load began, for comparing with requests.
    pub fn now(&self) -> Duration {
        self.shared.began.elapsed()
    }

    pub fn stop(self) -> Seen {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("users do not panic");
        }
        let requests = std::mem::take(&mut *self.shared.requests.lock().expect("no panic while held"));
        Seen { requests }
    }
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn come_and_go(&self) {
        while !self.is_stopped() {
            let user = self.count.fetch_add(1, Ordering::Relaxed);
            let found = self.find(user);
            for _ in 0..self.load.requests {
                self.ask(user, &found);
                std::thread::sleep(self.load.pause);
                if self.is_stopped() {
                    break;
                }
            }
        }
    }

    /// The hosts that a user will try, in this order.
    fn find(&self, user: u64) -> Vec<usize> {
        let all: Vec<usize> = self.load.hosts.iter().map(|(host, _)| *host).collect();
        let turned = |mut hosts: Vec<usize>| {
            let by = (user % hosts.len().max(1) as u64) as usize;
            hosts.rotate_left(by);
            hosts
        };
        match self.load.finding {
            Finding::Only(host) => vec![host],
            Finding::TryNext => turned(all),
            Finding::Dns { .. } => {
                let answer = self.answer.lock().expect("no panic while held").clone();
                let mut hosts = turned(if answer.is_empty() { all } else { answer });
                hosts.truncate(1);
                hosts
            }
        }
    }

    fn address(&self, host: usize) -> SocketAddr {
        let found = self.load.hosts.iter().find(|(number, _)| *number == host);
        found.expect("users know only hosts that there are").1
    }

    fn ask(&self, user: u64, hosts: &[usize]) {
        let at = self.began.elapsed();
        let mut outcome = (hosts[0], Err(anyhow::anyhow!("nothing was tried")));
        let patience = match self.load.finding {
            Finding::Only(_) => ONLY_ADDRESS_TIMEOUT,
            _ => CONNECT_TIMEOUT,
        };
        for host in hosts {
            let connected = TcpStream::connect_timeout(&self.address(*host), patience);
            match connected {
                Ok(stream) => {
                    outcome = (*host, get(stream, &self.load.domain));
                    break;
                }
                Err(error) => outcome = (*host, Err(error).context("cannot connect")),
            }
        }
        let request = Request {
            user,
            at,
            took: self.began.elapsed() - at,
            host: outcome.0,
            error: outcome.1.err().map(|error| format!("{error:#}")),
        };
        self.requests.lock().expect("no panic while held").push(request);
    }

    /// Checks every host, and lets the answer follow when it is old enough to be asked for again.
    fn answer_names(&self) {
        let Finding::Dns {
            check_every,
            checks,
            time_to_live,
        } = self.load.finding
        else {
            return;
        };
        let mut failed: BTreeMap<usize, u32> = BTreeMap::new();
        let (mut next_check, mut asked) = (Instant::now(), Instant::now());
        while !self.is_stopped() {
            std::thread::sleep(Duration::from_millis(50));
            if next_check <= Instant::now() {
                next_check += check_every;
                for (host, address) in &self.load.hosts {
                    let is_well = TcpStream::connect_timeout(address, Duration::from_secs(2))
                        .map_err(Into::into)
                        .and_then(|stream| get(stream, &self.load.domain))
                        .is_ok();
                    let count = failed.entry(*host).or_default();
                    *count = if is_well { 0 } else { *count + 1 };
                }
            }
            if asked.elapsed() >= time_to_live {
                asked = Instant::now();
                let well = |host: &usize| failed.get(host).is_none_or(|count| *count < checks);
                let hosts = self.load.hosts.iter().map(|(host, _)| *host);
                *self.answer.lock().expect("no panic while held") = hosts.filter(well).collect();
            }
        }
    }
}

fn get(mut stream: TcpStream, domain: &str) -> Result<()> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let request = format!("GET / HTTP/1.1\r\nHost: {domain}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("cannot ask")?;
    let mut answer = vec![];
    stream.read_to_end(&mut answer).context("the answer breaks off")?;
    let line = String::from_utf8_lossy(&answer[..answer.len().min(64)]).into_owned();
    let line = line.lines().next().unwrap_or_default().to_owned();
    ensure!(line.starts_with("HTTP/1.1 200"), "the answer is {line:?}");
    Ok(())
}

/// What users saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub requests: Vec<Request>,
}

impl Seen {
    pub fn errors(&self) -> impl Iterator<Item = &Request> {
        self.requests.iter().filter(|request| request.error.is_some())
    }

    /// Errors by hosts that were alive: the cluster's own.
    pub fn errors_but_at(&self, dead: usize) -> Vec<&Request> {
        self.errors().filter(|request| request.host != dead).collect()
    }

    pub fn users(&self) -> usize {
        count_users(self.requests.iter())
    }

    pub fn users_with_errors(&self) -> usize {
        count_users(self.errors())
    }

    /// The longest that any successful request took.
    pub fn slowest(&self) -> Duration {
        let served = self.requests.iter().filter(|request| request.error.is_none());
        served.map(|request| request.took).max().unwrap_or_default()
    }
}

fn count_users<'a>(requests: impl Iterator<Item = &'a Request>) -> usize {
    let mut users: Vec<u64> = requests.map(|request| request.user).collect();
    users.sort_unstable();
    users.dedup();
    users.len()
}
