//! What agents cost the controller: many of them, that start and stop nothing but say that they did.
//!
//! The controller is a process of its own, so that its memory and its processor time are its own, too; the agents are
//! tasks of this one. Each reports every 0.9 s, as real ones do, and follows its assignments.
//!
//!   bench_agents [AGENTS] [JOBS] [SECONDS]

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use api::{
    host::{Assignment, HostReport, JobReport, ReportedState},
    wire::{NewApp, NewRelease, NewScaleRequest},
};
use futures::StreamExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use types::{Exit, HostId, JobRef, ReleaseId};

mod shared;

const HEARTBEAT: Duration = Duration::from_millis(900);
/// How often each change is made that all agents are to hear of.
const ROUNDS: usize = 20;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|role| role == "serve") {
        return serve().await;
    }
    let number = |index: usize, default: usize| {
        let text = arguments.get(index);
        text.map_or(default, |text| text.parse().expect("a number"))
    };
    let (agents, jobs, seconds) = (number(0, 50), number(1, 1_000), number(2, 20));
    let window = Duration::from_secs(seconds as u64);
    let mut server = Server::start();
    let client = shared::client(server.address, false);

    println!("                                        memory MB   % of a core");
    server.measure("no agents", window).await;
    let (sender, mut heard) = unbounded_channel();
    for index in 0..agents {
        tokio::spawn(agent(index, server.address, sender.clone()));
    }
    let (bare, _) = server
        .measure(&format!("{agents} agents without jobs"), window)
        .await;

    let release = release(&client, "shop", false).await;
    let begun = Instant::now();
    scale(&client, "shop", release, jobs).await;
    up(&mut heard, jobs).await;
    println!(
        "{jobs} jobs of one app on {agents} agents: {:.2} s until all are up",
        begun.elapsed().as_secs_f64()
    );
    let (full, share) = server
        .measure(&format!("{agents} agents, {jobs} jobs"), window)
        .await;
    println!(
        "for each agent with its {} jobs: {:.0} KB more memory, {:.3} % of a core",
        jobs / agents,
        (full - bare) * 1024.0 / agents as f64,
        share / agents as f64
    );

    // What all agents hear of: a process that runs on each host.
    let everywhere = self::release(&client, "everywhere", true).await;
    let (mut first, mut last) = (vec![], vec![]);
    for round in 0..ROUNDS {
        let begun = Instant::now();
        scale(&client, "everywhere", everywhere, (round + 1) % 2).await;
        for index in 0..agents {
            heard.recv().await.expect("agents go on");
            if index == 0 {
                first.push(begun.elapsed());
            }
        }
        last.push(begun.elapsed());
        // The controller hears that jobs are up before it is told to stop them.
        settled(&client, "everywhere", if round % 2 == 0 { agents } else { 0 }).await;
    }
    println!(
        "a change that every agent is to act on: heard by the first after {:.1} ms, by the last after {:.1} ms (medians of {ROUNDS})",
        median(&mut first),
        median(&mut last)
    );
    server.process.kill().expect("it runs");
    server.process.wait().expect("it ends");
}

/// The controller's process, until it is killed: prints its address.
async fn serve() {
    let directory = tempfile::tempdir().expect("a directory");
    let serving = shared::Serving::start(directory.path()).await;
    println!("{}", serving.address);
    // Until the other end of the pipe is gone.
    let mut line = String::new();
    tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut line))
        .await
        .ok();
    serving.stop().await;
}

struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start() -> Server {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("it is piped"))
            .read_line(&mut line)
            .expect("its address");
        let address = line.trim().parse().expect("its address");
        Server { process, address }
    }

    /// Memory in MB, and the share of a core in per cent, after things had some seconds to settle.
    async fn measure(&self, what: &str, window: Duration) -> (f64, f64) {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let before = self.processor_s();
        tokio::time::sleep(window).await;
        let share = (self.processor_s() - before) / window.as_secs_f64() * 100.0;
        let text = self.file("smaps_rollup");
        let kb = text
            .lines()
            .find_map(|line| line.strip_prefix("Pss:"))
            .expect("a figure");
        let memory = kb
            .trim()
            .trim_end_matches(" kB")
            .parse::<f64>()
            .expect("a figure")
            / 1024.0;
        println!("{what:<40}{memory:9.1}   {share:11.2}");
        (memory, share)
    }

    fn processor_s(&self) -> f64 {
        // The name is in parentheses; of what follows it, user and system time are numbers 12 and 13.
        let text = self.file("stat");
        let fields: Vec<&str> = text
            .rsplit_once(')')
            .expect("a name")
            .1
            .split_whitespace()
            .collect();
        let ticks: f64 = fields[11..13]
            .iter()
            .map(|field| field.parse::<f64>().expect("a figure"))
            .sum();
        ticks / 100.0
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.process.id())).expect("it runs")
    }
}

/// One host: tells of each job that it was told to run or to stop.
async fn agent(index: usize, address: SocketAddr, heard: UnboundedSender<()>) {
    let client = shared::client(address, true);
    let host: HostId = format!("host{index}").parse().expect("an id");
    let (high, low) = (index / 64, index % 64 * 4);
    let report = HostReport {
        addr: "127.0.0.1:1".into(),
        tags: BTreeMap::new(),
        memory_bytes: 64 << 30,
        cpu_milli: 64_000,
        gateway: Some([100, 100 + high as u8, low as u8, 1].into()),
        subnet: Some(format!("100.{}.{low}.0/22", 100 + high)),
        underlay: Some([10, 0, high as u8, index as u8].into()),
        public_key: None,
        public_addresses: vec![],
        version: "v1".into(),
        started_at: daemon::now(),
    };
    let (beats, name) = (client.clone(), host.clone());
    let beat = async move {
        loop {
            beats.report_host(&name, &report).await.ok();
            tokio::time::sleep(HEARTBEAT).await;
        }
    };
    let work = async move {
        let (mut jobs, mut known) = (0u32, HashMap::new());
        loop {
            let Ok(mut stream) = client.assignments(&host).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            while let Some(Ok(assignment)) = stream.next().await {
                let (job, state) = match assignment {
                    Assignment::Run { job } => {
                        (job.id.parse::<JobRef>().expect("an id").job, ReportedState::Up)
                    }
                    Assignment::Stop { job } => (
                        job,
                        ReportedState::Down {
                            exit: Exit::Signal(15),
                        },
                    ),
                    _ => continue,
                };
                // What was told before is told again with every new list.
                let is_run = state == ReportedState::Up;
                if known.insert(job, is_run) != Some(is_run) {
                    heard.send(()).ok();
                    jobs += 1;
                }
                let report = JobReport {
                    state,
                    ipv6: None,
                    address: Some(
                        [
                            100,
                            100 + high as u8,
                            low as u8 + (jobs / 250) as u8 % 4,
                            2 + (jobs % 250) as u8,
                        ]
                        .into(),
                    ),
                    at: daemon::now(),
                };
                client.report_job(&host, job, &report).await.ok();
            }
        }
    };
    tokio::join!(beat, work);
}

async fn release(client: &api::Controller, app: &str, is_omni: bool) -> ReleaseId {
    let new = NewApp {
        name: app.into(),
        ..NewApp::default()
    };
    let id = client.create_app(&new).await.expect("an app is made").id;
    let artifact = serde_json::from_value(serde_json::json!({
        "type": "flynn", "uri": format!("flynn://slug/{app}"), "manifest": { "rootfs": [{ "layers": [{ "id": app }] }] },
    }));
    let artifact = client
        .create_artifact(&artifact.expect("an artifact"))
        .await
        .expect("it is taken");
    let process =
        serde_json::from_value(serde_json::json!({ "worker": { "args": ["/bin/work"], "omni": is_omni } }));
    let new = NewRelease {
        app_id: Some(id),
        artifacts: Some(vec![artifact.id]),
        processes: Some(process.expect("processes")),
        ..NewRelease::default()
    };
    let release = client.create_release(&new).await.expect("a release is made").id;
    client
        .set_app_release(app, release)
        .await
        .expect("it is the app's");
    release
}

async fn scale(client: &api::Controller, app: &str, release: ReleaseId, count: usize) {
    let request = NewScaleRequest {
        new_processes: Some([("worker".to_owned(), count as _)].into()),
        new_tags: None,
    };
    client.scale(app, release, &request).await.expect("it is scaled");
}

async fn up(heard: &mut UnboundedReceiver<()>, count: usize) {
    for _ in 0..count {
        heard.recv().await.expect("agents go on");
    }
}

async fn settled(client: &api::Controller, app: &str, count: usize) {
    loop {
        let jobs = client.jobs(app).await.expect("jobs are listed");
        let is_active = |job: &&api::wire::Job| !matches!(job.state, types::JobState::Down);
        let (active, up) = (
            jobs.iter().filter(is_active).count(),
            jobs.iter()
                .filter(|job| matches!(job.state, types::JobState::Up))
                .count(),
        );
        if active == count && up == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}
