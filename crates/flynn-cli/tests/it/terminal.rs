//! Jobs at a terminal: a real one, made for the test.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Stdio},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize},
};

use crate::{bench::Bench, fake::Fake};

struct Terminal {
    /// The side that a terminal emulator has.
    near: File,
    /// The side that programs have.
    far: OwnedFd,
    shown: String,
}

impl Terminal {
    fn open(columns: u16, lines: u16) -> Terminal {
        let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&near).unwrap();
        unlockpt(&near).unwrap();
        let name = ptsname(&near, vec![]).unwrap();
        let far = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let terminal = Terminal {
            near: near.into(),
            far,
            shown: String::new(),
        };
        terminal.resize(columns, lines);
        terminal
    }

    fn resize(&self, columns: u16, lines: u16) {
        let size = Winsize {
            ws_row: lines,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.near, size).unwrap();
    }

    fn run(&self, bench: &Bench, arguments: &[&str]) -> Child {
        let end = || Stdio::from(self.far.try_clone().unwrap());
        bench
            .flynn(arguments)
            .env("TERM", "xterm")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap()
    }

    /// Reads until what is shown contains `text`.
    fn wait_for(&mut self, text: &str) {
        let mut buffer = [0; 1024];
        while !self.shown.contains(text) {
            let deadline = Timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            let ready = poll(&mut [PollFd::new(&self.near, PollFlags::IN)], Some(&deadline)).unwrap();
            assert!(ready > 0, "{text:?} did not come, but {:?}", self.shown);
            let length = self.near.read(&mut buffer).unwrap();
            self.shown.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.far).unwrap()
    }
}

#[test]
fn a_job_at_a_terminal_gets_its_size_its_keys_and_its_resizes() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let mut terminal = Terminal::open(100, 30);
    let before = terminal.modes();
    assert!(before.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));

    let mut child = terminal.run(&bench, &["-a", "shop", "run", "terminal"]);
    terminal.wait_for("tty=true 100x30 Some(\"xterm\")\r\n");
    assert!(
        !terminal
            .modes()
            .local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    );
    terminal.near.write_all(b"a").unwrap();
    terminal.wait_for("Data(Stdin, b\"a\")");
    terminal.resize(120, 40);
    kill_process(Pid::from_child(&child), Signal::WINCH).unwrap();
    terminal.wait_for("Resize { height: 40, width: 120 }");
    terminal.near.write_all(&[3]).unwrap();
    terminal.wait_for("ctrl-c\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(format!("{:?}", terminal.modes()), format!("{before:?}"));
}

#[test]
fn the_terminal_is_given_back_when_the_connection_breaks() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let mut terminal = Terminal::open(80, 24);
    let before = terminal.modes();
    let mut child = terminal.run(&bench, &["-a", "shop", "run", "break"]);
    terminal.wait_for("error: the connection to the job broke");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(format!("{:?}", terminal.modes()), format!("{before:?}"));
}

#[test]
fn a_question_at_the_terminal_is_answered_by_the_apps_name() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let mut terminal = Terminal::open(80, 24);
    let mut child = terminal.run(&bench, &["-a", "shop", "delete"]);
    terminal.wait_for("Type shop to go on: ");
    terminal.near.write_all(b"yes\n").unwrap();
    terminal.wait_for("App deletion aborted.");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_the_original_did_unasked_is_asked_of_people_only() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    bench.transcript(&[
        "provider add tiles http://tiles.test/",
        "-a shop resource add tiles",
    ]);
    let mut terminal = Terminal::open(80, 24);
    let mut child = terminal.run(&bench, &["-a", "shop", "resource", "remove", "tiles"]);
    terminal.wait_for("Type shop to go on: ");
    terminal.near.write_all(b"no\n").unwrap();
    terminal.wait_for("Nothing was removed.");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
