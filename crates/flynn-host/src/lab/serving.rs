//! Whether a host serves: its router answers for the controller.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    host,
    layout::{Lab, host_name},
};

const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
const SERVE_TIMEOUT: Duration = Duration::from_secs(60);

pub fn wait(lab: &Lab, host: u8) -> Result<()> {
    host::wait_until(SERVE_TIMEOUT, || Ok(answers(lab, host))).with_context(|| {
        format!(
            "{} does not serve:\n{}",
            host_name(host),
            host::last_lines(lab, host)
        )
    })
}

pub fn answers(lab: &Lab, host: u8) -> bool {
    ask(lab, host).unwrap_or(false)
}

fn ask(lab: &Lab, host: u8) -> std::io::Result<bool> {
    let address = SocketAddr::from((lab.address(host), lab.http_port));
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let request = format!(
        "GET /ping HTTP/1.1\r\nHost: controller.{}\r\nConnection: close\r\n\r\n",
        lab.domain
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"HTTP/1.1 200")
}
