//! What git says at the end of a push, held back until the push is safe.
//!
//! `git receive-pack` answers in packets: text for the pusher in band 2 as it comes, and at the end its
//! report of each ref in band 1. The text passes through; the report waits, and becomes a refusal where
//! what git took does not count. Pure.

/// Largest payload of a packet in a band.
const PAYLOAD_MAX: usize = 65_515;

#[derive(Default)]
pub struct Held {
    bytes: Vec<u8>,
    /// The report has begun.
    is_report: bool,
}

impl Held {
    /// What of the answer may go on.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.bytes.extend_from_slice(bytes);
        let mut passed = 0;
        while !self.is_report {
            let rest = &self.bytes[passed..];
            if rest.len() < 5 {
                // A flush is four bytes and ends everything.
                self.is_report = rest.starts_with(b"0000");
                break;
            }
            match length(rest) {
                Some(length) if length >= 5 && rest[4] == 2 => {
                    if rest.len() < length {
                        break;
                    }
                    passed += length;
                }
                _ => self.is_report = true,
            }
        }
        self.bytes.drain(..passed).collect()
    }

    /// The rest, as git said it.
    pub fn accepted(self) -> Vec<u8> {
        self.bytes
    }

    /// The rest, with every ref refused and `lines` for the pusher.
    pub fn refused(self, lines: &[String]) -> Vec<u8> {
        let is_banded = self.bytes.get(4) == Some(&1);
        let mut report = vec![];
        let mut packets = Packets(&self.bytes);
        match is_banded {
            true => packets
                .filter(|packet| packet.first() == Some(&1))
                .for_each(|packet| report.extend_from_slice(&packet[1..])),
            false => packets.by_ref().for_each(|packet| packet_to(&mut report, packet)),
        }
        let mut refused = vec![];
        for packet in Packets(&report) {
            let line = String::from_utf8_lossy(packet);
            match line.trim_end().strip_prefix("ok ") {
                Some(name) => packet_to(&mut refused, format!("ng {name} fetch first\n").as_bytes()),
                None if line.starts_with("option ") => {}
                None => packet_to(&mut refused, packet),
            }
        }
        refused.extend_from_slice(b"0000");
        if !is_banded {
            return refused;
        }
        let mut answer = vec![];
        for line in lines {
            packet_to(&mut answer, format!("\u{2} !     {line}\n").as_bytes());
        }
        for piece in refused.chunks(PAYLOAD_MAX) {
            packet_to(&mut answer, &[&[1], piece].concat());
        }
        answer.extend_from_slice(b"0000");
        answer
    }
}

fn length(bytes: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(bytes.get(..4)?).ok()?;
    usize::from_str_radix(digits, 16).ok()
}

fn packet_to(out: &mut Vec<u8>, payload: &[u8]) {
    out.extend_from_slice(format!("{:04x}", payload.len() + 4).as_bytes());
    out.extend_from_slice(payload);
}

/// Payloads up to the first flush.
struct Packets<'a>(&'a [u8]);

impl<'a> Iterator for Packets<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let length = length(self.0).filter(|length| (4..=self.0.len()).contains(length))?;
        let (packet, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(&packet[4..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn banded(band: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![];
        packet_to(&mut out, &[&[band], payload].concat());
        out
    }

    fn report() -> Vec<u8> {
        let mut inner = vec![];
        packet_to(&mut inner, b"unpack ok\n");
        packet_to(&mut inner, b"ok refs/heads/main\n");
        inner.extend_from_slice(b"0000");
        inner
    }

    #[test]
    fn text_passes_and_the_report_waits_however_the_bytes_come() {
        let text = [banded(2, b"-----> Building\n"), banded(2, b"done\n")].concat();
        let end = [banded(1, &report()), b"0000".to_vec()].concat();
        let all = [text.clone(), end.clone()].concat();
        for size in 1..all.len() {
            let mut held = Held::default();
            let passed: Vec<u8> = all.chunks(size).flat_map(|piece| held.push(piece)).collect();
            assert_eq!(passed, text, "in pieces of {size}");
            assert_eq!(held.accepted(), end);
        }
    }

    #[test]
    fn a_refusal_takes_the_place_of_the_report() {
        let mut held = Held::default();
        held.push(&[banded(1, &report()), b"0000".to_vec()].concat());
        let told = String::from_utf8(held.refused(&["Why.".into()])).unwrap();
        let expected =
            "0011\u{2} !     Why.\n003a\u{1}000eunpack ok\n0023ng refs/heads/main fetch first\n00000000";
        assert_eq!(told, expected);

        let mut held = Held::default();
        held.push(&report());
        let told = String::from_utf8(held.refused(&["Why.".into()])).unwrap();
        assert_eq!(told, "000eunpack ok\n0023ng refs/heads/main fetch first\n0000");
    }
}
