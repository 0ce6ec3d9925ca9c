//! One sink with real files and real connections; the whole of it with a cluster is in `e2e`.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
};

use types::{SyslogSinkConfig, Timestamp, sink_template::Template};

use super::{backlog::Batch, *};

/// Logs of one app under a directory, and a sink that reads them.
struct World {
    dir: tempfile::TempDir,
    backlog: Backlog,
    taken: Cursors,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("app")).unwrap();
        let backlog = backlog();
        World {
            dir,
            backlog,
            taken: Cursors::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("app").join(name)
    }

    /// Appends lines `from..to`; a new file gets the number of its first line, as shims do it.
    fn write(&self, name: &str, lines: std::ops::Range<u64>) {
        let path = self.path(name);
        let is_new = !path.exists();
        let mut file = fs::File::options().create(true).append(true).open(&path).unwrap();
        if is_new {
            number(&file, lines.start);
        }
        for line in lines {
            writeln!(file, "2026-11-23T08:19:38.{line:09}Z stdout F line {line}").unwrap();
        }
    }

    fn rotate(&self) {
        for number in (1..9).rev() {
            let _ = fs::rename(
                self.path(&format!("job.log.{number}")),
                self.path(&format!("job.log.{}", number + 1)),
            );
        }
        fs::rename(self.path("job.log"), self.path("job.log.1")).unwrap();
    }

    fn batch(&mut self) -> Batch {
        let listing = listing::list(self.dir.path()).unwrap();
        self.backlog.batch(&listing, &self.taken)
    }

    /// Everything there is, as the texts of messages; what was sent is taken if so.
    fn read(&mut self, is_taken: bool) -> String {
        let mut texts = vec![];
        loop {
            let batch = self.batch();
            if batch.bytes.is_empty() {
                return texts.join(" ");
            }
            let sent = String::from_utf8(batch.bytes).unwrap();
            texts.extend(
                sent.lines()
                    .map(|line| line.split_once(" - ").unwrap().1.replace("line ", "")),
            );
            if is_taken {
                self.taken.extend(batch.positions);
            }
        }
    }
}

fn number(file: &fs::File, first: u64) {
    let text = first.to_string();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(file, container::logline::FIRST_LINE, text.as_bytes(), flags).unwrap();
}

fn config(text: &str) -> SyslogSinkConfig {
    serde_json::from_str(text).unwrap()
}

fn backlog() -> Backlog {
    let config = config(r#"{"url":"syslog://x","format":"newline"}"#);
    Backlog::new(
        "host0".into(),
        Framer::new(&config, Template::default()),
        Timestamp::EPOCH,
    )
}

#[test]
fn lines_are_read_once_and_in_order_through_rotations() {
    let mut world = World::new();
    world.write("job.log", 1..3);
    assert_eq!(world.read(true), "1 2");
    assert_eq!(world.read(true), "");
    world.write("job.log", 3..4);
    world.rotate();
    world.write("job.log", 4..5);
    world.rotate();
    world.write("job.log", 5..6);
    assert_eq!(world.read(true), "3 4 5");
    // Another process goes on where this one was, whatever the files are called by then.
    world.backlog = backlog();
    world.rotate();
    world.write("job.log", 6..7);
    assert_eq!(world.read(true), "6");
}

#[test]
fn what_was_not_taken_is_read_again() {
    let mut world = World::new();
    world.write("job.log", 1..3);
    assert_eq!(world.read(true), "1 2");
    world.write("job.log", 3..5);
    assert_eq!(world.read(false), "3 4");
    world.backlog.rewind();
    assert_eq!(world.read(false), "3 4");
}

#[test]
fn an_unfinished_line_waits_for_its_end() {
    let mut world = World::new();
    world.write("job.log", 1..2);
    let mut file = fs::File::options()
        .append(true)
        .open(world.path("job.log"))
        .unwrap();
    file.write_all(b"2026-11-23T08:19:39Z stdout F line").unwrap();
    assert_eq!(world.read(true), "1");
    assert_eq!(world.backlog.unfinished_bytes(), 34);
    file.write_all(b" 2\n").unwrap();
    assert_eq!(world.read(true), "2");
}

#[test]
fn a_sink_is_told_how_many_lines_it_missed() {
    let mut world = World::new();
    world.write("job.log", 1..3);
    assert_eq!(world.read(true), "1 2");
    world.rotate();
    world.write("job.log", 3..10);
    world.rotate();
    world.write("job.log", 10..11);
    // While nobody reads, the file with lines 3 to 9 goes, and the one before it.
    world.backlog = backlog();
    for name in ["job.log.1", "job.log.2"] {
        fs::remove_file(world.path(name)).unwrap();
    }
    let lost = "7 lines lost: the log was removed before this sink could take it";
    assert_eq!(world.read(true), format!("{lost} 10"));
    assert_eq!(world.read(true), "");
}

#[test]
fn a_reused_inode_is_not_taken_for_the_file_that_had_it() {
    let mut world = World::new();
    world.write("job.log", 1..9);
    assert_eq!(world.read(true).split(' ').count(), 8);
    // In place of a new file with the same inode: the same file with other lines.
    fs::write(world.path("job.log"), "").unwrap();
    let file = fs::File::options()
        .write(true)
        .open(world.path("job.log"))
        .unwrap();
    number(&file, 9);
    world.write("job.log", 9..19);
    world.backlog = backlog();
    assert_eq!(world.read(true), "9 10 11 12 13 14 15 16 17 18");
}

#[test]
fn a_log_that_a_power_cut_made_shorter_is_not_sent_again() {
    let mut world = World::new();
    world.write("job.log", 1..9);
    assert_eq!(world.read(true).split(' ').count(), 8);
    let file = fs::File::options()
        .write(true)
        .open(world.path("job.log"))
        .unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    world.backlog = backlog();
    assert_eq!(world.read(true), "");
}

#[test]
fn one_chatty_job_does_not_keep_the_others_waiting() {
    let mut world = World::new();
    world.write("chatty.log", 1..100_000);
    world.write("quiet.log", 1..2);
    let batch = world.batch();
    assert!(
        batch.bytes.len() < 2 << 20,
        "a batch has {} bytes",
        batch.bytes.len()
    );
    let logs: Vec<_> = batch.positions.iter().map(|(key, _)| &**key).collect();
    assert_eq!(logs, ["app/chatty", "app/quiet"]);
}

/// A receiver in a thread: the lines of one connection.
fn receive(listener: &TcpListener, count: usize) -> (Vec<String>, TcpStream) {
    receive_while(listener, |lines| lines.len() < count)
}

fn receive_until(listener: &TcpListener, last: &str) -> (Vec<String>, TcpStream) {
    receive_while(listener, |lines| lines.last().is_none_or(|line| line != last))
}

fn receive_while(listener: &TcpListener, goes_on: impl Fn(&[String]) -> bool) -> (Vec<String>, TcpStream) {
    let (stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = vec![];
    while goes_on(&lines) {
        let mut line = String::new();
        assert!(
            reader.read_line(&mut line).unwrap() > 0,
            "the connection ended after {} lines",
            lines.len()
        );
        lines.push(line.trim_end().rsplit(' ').next().unwrap().to_owned());
    }
    (lines, stream)
}

struct Shipping {
    listing: watch::Sender<Arc<Listing>>,
    taken: watch::Receiver<Arc<Cursors>>,
    status: Arc<Mutex<SinkStatus>>,
    stop: Shutdown,
    task: JoinHandle<()>,
}

impl Shipping {
    fn begin(world: &World, address: std::net::SocketAddr) -> Shipping {
        Shipping::to(world, &format!("syslog://{address}"), false)
    }

    fn to(world: &World, url: &str, insecure: bool) -> Shipping {
        let cursors_path = world.dir.path().join("cursors.json");
        let (taken, others) = watch::channel(Arc::new(position::read(&cursors_path).unwrap()));
        let (listing, for_ship) = watch::channel(Arc::new(listing::list(world.dir.path()).unwrap()));
        let status = Arc::new(Mutex::new(SinkStatus::default()));
        let stop = Shutdown::new();
        let ship = ship::Ship {
            url: types::SyslogUrl::parse(url).unwrap(),
            insecure,
            backlog: backlog(),
            listing: for_ship,
            taken,
            cursors_path,
            status: status.clone(),
            stop: stop.clone(),
        };
        Shipping {
            listing,
            taken: others,
            status,
            stop,
            task: tokio::spawn(ship.run()),
        }
    }

    fn look(&self, world: &World) {
        self.listing
            .send_replace(Arc::new(listing::list(world.dir.path()).unwrap()));
    }

    async fn is_at_line(&mut self, line: u64) {
        let key: listing::Key = "app/job".into();
        let arrives = self
            .taken
            .wait_for(|cursors| cursors.get(&key).is_some_and(|position| position.line >= line));
        tokio::time::timeout(Duration::from_secs(30), arrives)
            .await
            .expect("the cursor moves")
            .unwrap();
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_dies_and_returns_gets_every_line() {
    let world = World::new();
    world.write("job.log", 1..101);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let first = std::thread::spawn(move || {
        let (lines, stream) = receive(&listener, 100);
        (lines, stream, listener)
    });
    let mut shipping = Shipping::begin(&world, address);
    let (lines, stream, listener) = tokio::task::spawn_blocking(|| first.join().unwrap())
        .await
        .unwrap();
    assert_eq!(lines, (1..101).map(|n| n.to_string()).collect::<Vec<_>>());
    shipping.is_at_line(101).await;

    // These lines reach the receiver's kernel and count as taken; then its program ends, which has not
    // read them.
    world.write("job.log", 101..201);
    shipping.look(&world);
    shipping.is_at_line(201).await;
    drop(stream);

    // How many of the last lines had not been read nobody can know: some that had come again.
    let second = std::thread::spawn(move || receive_until(&listener, "200"));
    let (lines, _stream) = tokio::task::spawn_blocking(|| second.join().unwrap())
        .await
        .unwrap();
    let numbers: Vec<u64> = lines.iter().map(|line| line.parse().unwrap()).collect();
    assert!(numbers[0] <= 101, "the first line is {}", numbers[0]);
    assert_eq!(numbers, (numbers[0]..201).collect::<Vec<_>>());
    shipping.is_at_line(201).await;
    shipping.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_planned_end_nothing_is_sent_twice() {
    let world = World::new();
    world.write("job.log", 1..101);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (lines, stream) = receive(&listener, 100);
        // It closes when it has read to the end, as programs do.
        let mut rest = BufReader::new(&stream);
        assert!(rest.fill_buf().unwrap().is_empty());
        drop(stream);
        let (more, _stream) = receive(&listener, 1);
        (lines.len(), more)
    });
    let shipping = Shipping::begin(&world, address);
    while shipping.status.lock().unwrap().lines_sent < 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    shipping.end().await;
    world.write("job.log", 101..102);
    let shipping = Shipping::begin(&world, address);
    let (count, more) = tokio::task::spawn_blocking(|| receiver.join().unwrap())
        .await
        .unwrap();
    assert_eq!((count, more), (100, vec!["101".to_owned()]));
    shipping.end().await;
}

/// A receiver with a certificate that nobody vouches for: its first line, if it gets one.
fn receive_encrypted(listener: TcpListener) -> JoinHandle<Option<String>> {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![key.cert.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut lines = BufReader::new(acceptor.accept(stream).await.ok()?).lines();
        lines.next_line().await.ok()?
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_nobody_vouches_for_is_taken_only_if_the_sink_says_so() {
    let world = World::new();
    world.write("job.log", 1..2);
    for insecure in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("syslog+tls://localhost:{}", listener.local_addr().unwrap().port());
        let receiver = receive_encrypted(listener);
        let shipping = Shipping::to(&world, &url, insecure);
        let line = receiver.await.unwrap();
        assert_eq!(line.is_some(), insecure, "{line:?}");
        if !insecure {
            let began = tokio::time::Instant::now();
            while shipping.status.lock().unwrap().last_error.is_empty() {
                assert!(
                    began.elapsed() < Duration::from_secs(30),
                    "the sink does not say why"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let error = shipping.status.lock().unwrap().last_error.clone();
            assert!(error.contains("certificate"), "{error}");
        }
        shipping.end().await;
    }
}
