//! An attached connection as a client has it.

use api::{
    attach::{Frame, Stream, flag},
    host::{AttachReq, HostJob},
    wire::NewExec,
};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::life::{Life, PATIENCE};

pub struct Session {
    connection: api::controller::Attached,
    buffer: BytesMut,
}

/// What was written, on standard output and standard error, and the status.
pub type Heard = (String, String, u32);

impl Session {
    pub async fn open(life: &Life, path: &str, body: &impl serde::Serialize) -> Session {
        let connection = life.client().attach(path, body).await.unwrap();
        Session {
            connection,
            buffer: BytesMut::new(),
        }
    }

    pub async fn attach(life: &Life, job: &HostJob) -> Session {
        let flags = flag::STDIN | flag::STDOUT | flag::STDERR | flag::STREAM;
        let request = AttachReq {
            job_id: job.id.clone(),
            flags,
            height: 33,
            width: 111,
        };
        Session::open(life, "/attach", &request).await
    }

    pub async fn exec(life: &Life, job: &HostJob, args: &[&str]) -> Session {
        let args = args.iter().map(|arg| arg.to_string()).collect();
        let exec = NewExec {
            args,
            ..NewExec::default()
        };
        Session::open(life, &format!("/host/jobs/{}/exec", job.id), &exec).await
    }

    pub async fn state(&mut self) -> u8 {
        self.connection.read_u8().await.unwrap()
    }

    pub async fn send(&mut self, frame: Frame) {
        self.connection.write_all(&frame.to_bytes()).await.unwrap();
    }

    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::read(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            if self.connection.read_buf(&mut self.buffer).await.unwrap() == 0 {
                return None;
            }
        }
    }

    /// Everything up to the end.
    pub async fn hear(mut self) -> Heard {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let all = async {
            loop {
                match self.frame().await {
                    Some(Frame::Data(Stream::Stdout, bytes)) => stdout.extend_from_slice(&bytes),
                    Some(Frame::Data(Stream::Stderr, bytes)) => stderr.extend_from_slice(&bytes),
                    Some(Frame::Exit(status)) => return status,
                    other => panic!("{other:?}"),
                }
            }
        };
        let status = tokio::time::timeout(PATIENCE, all)
            .await
            .expect("the session ends");
        (
            String::from_utf8(stdout).unwrap(),
            String::from_utf8(stderr).unwrap(),
            status,
        )
    }
}

pub fn heard(stdout: &str, stderr: &str, status: u32) -> Heard {
    (stdout.into(), stderr.into(), status)
}
