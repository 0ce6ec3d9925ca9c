//! A process's input and output, and everybody who is connected to the shim because of them.
//!
//! One thread, one poll: what is ready is moved a bounded step, and nothing ever waits. With a
//! log, output goes there and to the clients, and a client that does not keep up is dropped.
//! Without one, output waits for the clients, and so does the app.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use container::logline::Stream;
use container::protocol::{CHUNK_BYTES_MAX, Frame, Reply, Request};
use container::{ExitRecord, WindowSize};

use crate::logfile::LogWriter;
use crate::sys;

/// What may wait for a client before, with a log, it is dropped.
const CLIENT_BYTES_MAX: usize = 4 << 20;
/// What may wait for a client before, without a log, output waits.
const CLIENT_BYTES_ENOUGH: usize = 256 << 10;
const STDIN_BYTES_ENOUGH: usize = 256 << 10;
/// More connections than any daemon needs; the socket is root's alone.
const CLIENTS_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    Output(usize),
    Stdin,
    Listener,
    Client(u64),
    /// The caller's own.
    Signals,
    Init,
}

/// What to wait for.
#[derive(Default)]
pub struct Polls {
    descriptors: Vec<libc::pollfd>,
    tokens: Vec<Token>,
}

impl Polls {
    pub fn add(&mut self, token: Token, descriptor: impl AsFd, events: i16) {
        self.descriptors.push(libc::pollfd {
            fd: descriptor.as_fd().as_raw_fd(),
            events,
            revents: 0,
        });
        self.tokens.push(token);
    }

    pub fn wait(mut self, limit: Option<Duration>) -> io::Result<Vec<(Token, i16)>> {
        // Rounded up, so that a deadline has passed when the wait is over.
        let milliseconds = limit.map_or(-1, |limit| limit.as_millis().min(3_600_000) as i32 + 1);
        // SAFETY: the array and its length belong together.
        let result = sys::check(
            unsafe {
                libc::poll(
                    self.descriptors.as_mut_ptr(),
                    self.descriptors.len() as _,
                    milliseconds,
                )
            }
            .into(),
        );
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Vec::new()),
            other => other?,
        };
        let ready = self
            .tokens
            .into_iter()
            .zip(&self.descriptors)
            .filter(|(_, one)| one.revents != 0);
        Ok(ready.map(|(token, one)| (token, one.revents)).collect())
    }
}

/// Where the process's input goes.
enum Input {
    /// Pid 1 has not handed the terminal over yet; what is typed until then is kept, and so is the
    /// last size asked for.
    Awaited {
        size: Option<WindowSize>,
    },
    Open(OwnedFd),
    Closed,
}

pub struct Session {
    stdin: Input,
    stdin_queue: VecDeque<u8>,
    /// Close it as soon as the queue is empty.
    stdin_is_closing: bool,
    outputs: Vec<(Stream, Option<OwnedFd>)>,
    is_terminal: bool,
    log: Option<LogWriter>,
    listener: Option<UnixListener>,
    clients: Vec<Client>,
    next_client: u64,
    /// Somebody was attached with input, and the last such one has gone.
    pub has_hung_up: bool,
    /// Output read and frames sent so far: whether anything moves.
    pub moved_bytes: u64,
}

struct Client {
    id: u64,
    socket: UnixStream,
    received: Vec<u8>,
    to_send: VecDeque<u8>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    waits: bool,
    /// It will send nothing more, but still reads.
    has_finished_sending: bool,
    is_gone: bool,
}

impl Client {
    fn is_attached(&self) -> bool {
        self.stdin || self.stdout || self.stderr
    }

    fn send(&mut self, frame: &Frame) {
        self.to_send.extend(frame.to_bytes());
    }
}

impl Session {
    pub fn new(listener: Option<UnixListener>) -> Session {
        Session {
            stdin: Input::Closed,
            stdin_queue: VecDeque::new(),
            stdin_is_closing: false,
            outputs: Vec::new(),
            is_terminal: false,
            log: None,
            listener,
            clients: Vec::new(),
            next_client: 0,
            has_hung_up: false,
            moved_bytes: 0,
        }
    }

    pub fn set_pipes(&mut self, stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<()> {
        for pipe in stdin.iter().chain([&stdout, &stderr]) {
            sys::set_nonblocking(pipe.as_fd())?;
        }
        self.stdin = stdin.map_or(Input::Closed, Input::Open);
        self.outputs = vec![(Stream::Stdout, Some(stdout)), (Stream::Stderr, Some(stderr))];
        Ok(())
    }

    /// A terminal will be there: clients may type before it is.
    pub fn expect_terminal(&mut self) {
        self.stdin = Input::Awaited { size: None };
        self.is_terminal = true;
    }

    pub fn set_terminal(&mut self, terminal: OwnedFd) -> io::Result<()> {
        sys::set_nonblocking(terminal.as_fd())?;
        if let Input::Awaited { size: Some(size) } = self.stdin {
            sys::resize(terminal.as_fd(), size)?;
        }
        self.stdin = Input::Open(terminal.try_clone()?);
        self.outputs = vec![(Stream::Stdout, Some(terminal))];
        self.is_terminal = true;
        Ok(())
    }

    pub fn set_log(&mut self, log: LogWriter) {
        self.log = Some(log);
    }

    pub fn take_log(&mut self) -> Option<LogWriter> {
        self.log.take()
    }

    pub fn add_client(&mut self, socket: UnixStream) -> io::Result<u64> {
        socket.set_nonblocking(true)?;
        self.next_client += 1;
        self.clients.push(Client {
            id: self.next_client,
            socket,
            received: Vec::new(),
            to_send: VecDeque::new(),
            stdin: false,
            stdout: false,
            stderr: false,
            waits: false,
            has_finished_sending: false,
            is_gone: false,
        });
        Ok(self.next_client)
    }

    pub fn has_attached(&self) -> bool {
        self.clients.iter().any(Client::is_attached)
    }

    pub fn has_client(&self, id: u64) -> bool {
        self.clients.iter().any(|client| client.id == id)
    }

    pub fn attach(&mut self, id: u64, stdin: bool, stdout: bool, stderr: bool) {
        if let Some(client) = self.client(id) {
            // A terminal has one stream, which goes by the name of stdout.
            (client.stdin, client.stdout, client.stderr) = (stdin, stdout, stderr);
        }
    }

    pub fn wait_for_exit(&mut self, id: u64) {
        if let Some(client) = self.client(id) {
            client.waits = true;
        }
    }

    pub fn reply(&mut self, id: u64, reply: Reply) {
        if let Some(client) = self.client(id) {
            client.send(&Frame::Reply(reply));
        }
    }

    /// To everybody who is attached or waits; the last frame they get.
    pub fn announce_exit(&mut self, record: &ExitRecord) {
        for client in &mut self.clients {
            if client.waits || client.is_attached() {
                client.send(&Frame::Exit(record.clone()));
            } else if client.to_send.is_empty() {
                client.is_gone = true;
            }
        }
        self.listener = None;
    }

    fn client(&mut self, id: u64) -> Option<&mut Client> {
        self.clients.iter_mut().find(|client| client.id == id)
    }

    /// Whether all output has been taken over.
    pub fn is_drained(&self) -> bool {
        self.outputs.iter().all(|(_, output)| output.is_none())
    }

    /// Everything sent, everybody gone.
    pub fn is_said(&self) -> bool {
        self.clients.iter().all(|client| client.to_send.is_empty())
    }

    fn takes_output(&self) -> bool {
        match &self.log {
            Some(log) => log.is_ready(),
            None => {
                let mut attached = self
                    .clients
                    .iter()
                    .filter(|client| client.is_attached())
                    .peekable();
                attached.peek().is_some() && attached.all(|client| client.to_send.len() < CLIENT_BYTES_ENOUGH)
            }
        }
    }

    /// Adds what the session waits for. The answer is a limit to the wait.
    pub fn register(&self, polls: &mut Polls) -> Option<Duration> {
        let takes_output = self.takes_output();
        for (index, (_, output)) in self.outputs.iter().enumerate() {
            if let (Some(output), true) = (output, takes_output) {
                polls.add(Token::Output(index), output, libc::POLLIN);
            }
        }
        if let (Input::Open(stdin), false) = (&self.stdin, self.stdin_queue.is_empty()) {
            polls.add(Token::Stdin, stdin, libc::POLLOUT);
        }
        if let (Some(listener), true) = (&self.listener, self.clients.len() < CLIENTS_MAX) {
            polls.add(Token::Listener, listener, libc::POLLIN);
        }
        for client in &self.clients {
            let mut events = 0;
            let takes_input = !client.stdin || self.stdin_queue.len() < STDIN_BYTES_ENOUGH;
            if takes_input && !client.has_finished_sending {
                events |= libc::POLLIN;
            }
            if !client.to_send.is_empty() {
                events |= libc::POLLOUT;
            }
            polls.add(Token::Client(client.id), &client.socket, events);
        }
        // The log's thread has no way to wake a poll, and rarely has a reason to.
        (self.log.is_some() && !takes_output).then_some(Duration::from_millis(5))
    }

    /// Moves what is ready. The answer is what clients ask of the caller.
    pub fn handle(&mut self, token: Token, events: i16) -> Vec<(u64, Request)> {
        match token {
            Token::Output(index) => drop(self.read_output_once(index)),
            Token::Stdin => self.write_stdin(),
            Token::Listener => self.accept(),
            Token::Client(id) => return self.serve(id, events),
            Token::Signals | Token::Init => {}
        }
        Vec::new()
    }

    /// Reads all that is there now; for when the process is gone, and with it whoever could write more.
    pub fn drain(&mut self) {
        for index in 0..self.outputs.len() {
            while self.outputs[index].1.is_some() && self.takes_output() {
                if !self.read_output_once(index) {
                    self.outputs[index].1 = None;
                }
            }
        }
    }

    /// False: there is nothing to read now.
    fn read_output_once(&mut self, index: usize) -> bool {
        let (stream, output) = &mut self.outputs[index];
        let (stream, Some(descriptor)) = (*stream, output.as_ref()) else {
            return false;
        };
        let mut buffer = [0; CHUNK_BYTES_MAX];
        match rustix::io::read(descriptor, &mut buffer) {
            Ok(0) => *output = None,
            Ok(count) => self.give_output(stream, &buffer[..count]),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return false,
            // EIO: nobody has the other side of the terminal open any more.
            Err(_) => *output = None,
        }
        true
    }

    fn give_output(&mut self, stream: Stream, bytes: &[u8]) {
        self.moved_bytes += bytes.len() as u64;
        if let Some(log) = &self.log {
            log.push(stream, bytes);
        }
        let frame = match stream {
            Stream::Stdout => Frame::Stdout(bytes.to_vec()),
            Stream::Stderr => Frame::Stderr(bytes.to_vec()),
        };
        for client in &mut self.clients {
            let wants = match stream {
                Stream::Stdout => client.stdout,
                Stream::Stderr => client.stderr,
            };
            if wants && client.to_send.len() < CLIENT_BYTES_MAX {
                client.send(&frame);
            } else if wants {
                client.is_gone = true;
            }
        }
        self.sweep();
    }

    fn write_stdin(&mut self) {
        let Input::Open(stdin) = &self.stdin else {
            return;
        };
        let (front, _) = self.stdin_queue.as_slices();
        match rustix::io::write(stdin, front) {
            Ok(count) => drop(self.stdin_queue.drain(..count)),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            // The app has closed its input: what is typed now is for nobody.
            Err(_) => {
                self.stdin_queue.clear();
                self.stdin = Input::Closed;
            }
        }
        self.close_stdin_if_due();
    }

    fn close_stdin_if_due(&mut self) {
        if self.stdin_is_closing && self.stdin_queue.is_empty() {
            self.stdin = Input::Closed;
        }
    }

    fn close_stdin(&mut self) {
        if matches!(self.stdin, Input::Closed) {
            return;
        }
        if self.is_terminal {
            // What ctrl-D sends.
            self.stdin_queue.push_back(4);
        } else {
            self.stdin_is_closing = true;
            self.close_stdin_if_due();
        }
    }

    fn resize(&mut self, new_size: WindowSize) {
        match &mut self.stdin {
            Input::Awaited { size } => *size = Some(new_size),
            Input::Open(terminal) if self.is_terminal => drop(sys::resize(terminal.as_fd(), new_size)),
            Input::Open(_) | Input::Closed => {}
        }
    }

    fn accept(&mut self) {
        let accepted = self.listener.as_ref().map(UnixListener::accept);
        if let Some(Ok((socket, _))) = accepted {
            drop(self.add_client(socket));
        }
    }

    fn serve(&mut self, id: u64, events: i16) -> Vec<(u64, Request)> {
        let Some(position) = self.clients.iter().position(|client| client.id == id) else {
            return Vec::new();
        };
        if events & libc::POLLOUT != 0 {
            let client = &mut self.clients[position];
            let (front, _) = client.to_send.as_slices();
            match rustix::net::send(&client.socket, front, rustix::net::SendFlags::NOSIGNAL) {
                Ok(count) => {
                    client.to_send.drain(..count);
                    self.moved_bytes += count as u64;
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => client.is_gone = true,
            }
        }
        let mut requests = Vec::new();
        if events & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0 {
            for frame in self.receive(position, events) {
                let takes_stdin = self.clients[position].stdin;
                let is_heard = !matches!(self.stdin, Input::Closed) && !self.stdin_is_closing;
                match frame {
                    Frame::Request(request) => requests.push((id, request)),
                    Frame::Stdin(bytes) if takes_stdin && is_heard => self.stdin_queue.extend(bytes),
                    Frame::CloseStdin if takes_stdin => self.close_stdin(),
                    Frame::Resize(size) => self.resize(size),
                    _ => {}
                }
            }
        }
        self.sweep();
        requests
    }

    fn receive(&mut self, position: usize, events: i16) -> Vec<Frame> {
        let client = &mut self.clients[position];
        let mut buffer = [0; CHUNK_BYTES_MAX];
        match rustix::io::read(&client.socket, &mut buffer) {
            Ok(0) if events & libc::POLLHUP == 0 => {
                client.has_finished_sending = true;
                if client.stdin {
                    self.close_stdin();
                }
                return Vec::new();
            }
            Ok(0) => client.is_gone = true,
            Ok(count) => client.received.extend_from_slice(&buffer[..count]),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(_) => client.is_gone = true,
        }
        let mut frames = Vec::new();
        loop {
            match Frame::take(&mut client.received) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return frames,
                Err(_) => {
                    client.is_gone = true;
                    return frames;
                }
            }
        }
    }

    /// Forgets who has gone. The last one who typed takes the input along, as a terminal that is closed does.
    fn sweep(&mut self) {
        let typed = self.clients.iter().any(|client| client.stdin && client.is_gone);
        self.clients.retain(|client| !client.is_gone);
        if typed && !self.clients.iter().any(|client| client.stdin) {
            self.has_hung_up = true;
            if !self.is_terminal {
                self.close_stdin();
            }
        }
    }
}

/// Where to read, and where to write.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}
