//! What leads the outside to hosts: health for load balancers, and names that lead to living hosts only.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{Lab, http};

const ANSWER_MAX: Duration = Duration::from_secs(2);
const ADDRESS: u16 = 1;
const NAME_SERVER: u16 = 2;
const REFUSED: u8 = 5;

/// An answer to a question about a name.
#[derive(Debug)]
struct Named {
    code: u8,
    is_authoritative: bool,
    records: u16,
    addresses: Vec<Ipv4Addr>,
}

fn question(name: &str, kind: u16) -> Vec<u8> {
    // The header: a number, recursion wished for, one question.
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.push(0);
    query.extend_from_slice(&kind.to_be_bytes());
    query.extend_from_slice(&[0, 1]);
    query
}

fn parse(query: &[u8], answer: &[u8]) -> Result<Named> {
    let number = |at: usize| -> Result<u16> {
        let bytes = answer.get(at..at + 2).context("the answer is cut off")?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    ensure!(number(0)? == 0x1234, "an answer to something else");
    let records = number(6)?;
    // The question comes back as it was.
    let mut at = query.len();
    let mut addresses = vec![];
    for _ in 0..records {
        // A name that has been said is a pointer of two bytes.
        while answer
            .get(at)
            .is_some_and(|length| *length != 0 && *length < 0xc0)
        {
            at += usize::from(answer[at]) + 1;
        }
        at += if answer.get(at) == Some(&0) { 1 } else { 2 };
        let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = answer
            .get(at + 10..at + 10 + length)
            .context("a record is cut off")?;
        if kind == ADDRESS {
            addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(data)?));
        }
        at += 10 + length;
    }
    addresses.sort();
    Ok(Named {
        code: answer[3] & 0xf,
        is_authoritative: answer[2] & 4 != 0,
        records,
        addresses,
    })
}

fn ask(server: &str, name: &str, kind: u16) -> Result<Named> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    socket.connect((server, 53))?;
    let query = question(name, kind);
    socket.send(&query)?;
    let mut answer = [0; 4096];
    let length = socket.recv(&mut answer)?;
    parse(&query, &answer[..length])
}

fn ask_over_tcp(server: &str, name: &str) -> Result<Named> {
    let mut stream = TcpStream::connect((server, 53))?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let query = question(name, ADDRESS);
    stream.write_all(&(query.len() as u16).to_be_bytes())?;
    stream.write_all(&query)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    parse(&query, &answer)
}

/// Waits until a host answers for the cluster's names with the addresses of these hosts and no other.
fn wait_for_names(lab: &Lab, at: usize, hosts: &[usize]) -> Result<()> {
    let expected: Vec<Ipv4Addr> = hosts
        .iter()
        .map(|host| lab.address(*host).parse())
        .collect::<Result<_, _>>()?;
    lab.wait("names to lead to living hosts", || {
        let answer = ask(lab.address(at), "shop.flynn.localhost", ADDRESS)?;
        match answer.code == 0 && answer.addresses == expected {
            true => Ok(Some(())),
            false => anyhow::bail!("host{at} answers {answer:?}"),
        }
    })
}

fn wait_for_health(lab: &Lab, host: usize, status: u16) -> Result<()> {
    let address = format!("{}:80", lab.address(host));
    lab.wait("the health that a load balancer is to see", || {
        let answer = http::get(&address, lab.address(host), "/.well-known/flynn/health")?;
        Ok((answer.status == status).then_some(()))
    })
}

#[test]
fn the_outside_is_led_to_hosts_that_live_and_stay() -> Result<()> {
    let lab = Lab::up(3)?;
    lab.configure("dns_public = [\"0.0.0.0:53\"]\n")?;
    for host in 1..=3 {
        wait_for_names(&lab, host, &[1, 2, 3])?;
        wait_for_health(&lab, host, 200)?;
    }
    let first = lab.address(1);
    ensure!(ask_over_tcp(first, "flynn.localhost")?.addresses.len() == 3);
    let servers = ask(first, "flynn.localhost", NAME_SERVER)?;
    ensure!(servers.records == 3 && servers.is_authoritative, "{servers:?}");
    let own = ask(first, "host2.ns.flynn.localhost", ADDRESS)?;
    ensure!(own.addresses == [lab.address(2).parse::<Ipv4Addr>()?], "{own:?}");
    let other = ask(first, "example.com", ADDRESS)?;
    ensure!(other.code == REFUSED && !other.is_authoritative, "{other:?}");

    // Before it is switched off: nobody is sent there any more, while it still answers.
    lab.exec(1, &["flynn-host", "drain", "host3"])?;
    wait_for_health(&lab, 3, 503)?;
    wait_for_names(&lab, 1, &[1, 2])?;
    let answer = http::get(
        &format!("{}:80", lab.address(3)),
        "controller.flynn.localhost",
        "/ping",
    )?;
    ensure!(answer.status == 200, "it answers {}", answer.status);
    lab.exec(1, &["flynn-host", "undrain", "host3"])?;
    wait_for_health(&lab, 3, 200)?;
    wait_for_names(&lab, 1, &[1, 2, 3])?;

    let began = Instant::now();
    lab.lab(&["kill", "host2"])?;
    wait_for_names(&lab, 1, &[1, 3])?;
    wait_for_names(&lab, 3, &[1, 3])?;
    println!("a dead host has left the answers after {:?}", began.elapsed());
    lab.lab(&["start", "host2", "--wait"])?;
    for host in 1..=3 {
        wait_for_names(&lab, host, &[1, 2, 3])?;
    }
    lab.finish()
}
