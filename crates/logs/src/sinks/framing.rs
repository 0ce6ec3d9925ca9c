//! From a record of a log file to the bytes of a syslog message.
//!
//! ```text
//! 2026-11-23T08:19:38.123456789Z stderr F out of stock
//! <11>1 2026-11-23T08:19:38.123456Z HOST APP TYPE.HOST-UUID ID2 [flynn seq="7"] TEMPLATE out of stock
//! ```
//!
//! This runs for every line of every job, so a record is not parsed beyond its spaces and its time is
//! text that is cut: RFC 5424 has no room for nanoseconds. Whatever is no record is left out.

use types::{
    SyslogFormat, SyslogSinkConfig,
    sink_template::{Template, TemplateJob},
};

/// Longer lines become several messages, as the original's did: receivers have limits.
const TEXT_BYTES_MAX: usize = 10_000;
/// What the platform says about a log in a job's own log.
const INIT: &str = "ID3";

/// Makes the messages of one sink.
pub struct Framer {
    format: SyslogFormat,
    use_ids: bool,
    structured_data: bool,
    template: Template,
    message: Vec<u8>,
}

/// What all messages of one log have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// ` HOSTNAME APP-NAME PROCID `
    place: Vec<u8>,
    /// What the template says of the job.
    prefix: Vec<u8>,
}

/// A log's job, or the part of the platform that writes it.
pub struct About<'a> {
    pub host: &'a str,
    pub app_id: &'a str,
    pub app_name: &'a str,
    /// `web.HOST-UUID`, or `router`.
    pub process: &'a str,
    pub job: TemplateJob<'a>,
}

struct Record<'a> {
    time: &'a [u8],
    /// PRI with its brackets, and MSGID.
    kind: (&'static str, &'static str),
    text: &'a [u8],
}

impl Framer {
    pub fn new(config: &SyslogSinkConfig, template: Template) -> Framer {
        Framer {
            format: config.format(),
            use_ids: config.use_ids,
            structured_data: config.structured_data,
            template,
            message: vec![],
        }
    }

    pub fn header(&self, about: &About<'_>) -> Header {
        let app = if self.use_ids || about.app_name.is_empty() {
            about.app_id
        } else {
            about.app_name
        };
        let mut place = vec![];
        for (text, length_max) in [(about.host, 255), (app, 48), (about.process, 128)] {
            place.push(b' ');
            let word: Vec<u8> = text
                .bytes()
                .filter(u8::is_ascii_graphic)
                .take(length_max)
                .collect();
            place.extend_from_slice(if word.is_empty() { b"-" } else { &word });
        }
        place.push(b' ');
        Header {
            place,
            prefix: self.template.render(&about.job).into_bytes(),
        }
    }

    /// Appends the messages of one record; whether it was one.
    pub fn record(&mut self, header: &Header, record: &[u8], line: u64, out: &mut Vec<u8>) -> bool {
        let Some(record) = Record::parse(record) else {
            return false;
        };
        let mut rest = record.text;
        let mut part = 0;
        loop {
            let (text, after) = rest.split_at(end_of_part(rest));
            self.message.clear();
            self.begin(header, record.kind.0, record.time, record.kind.1);
            if !self.structured_data {
                self.message.push(b'-');
            } else {
                self.message.extend_from_slice(b"[flynn seq=\"");
                decimal(line, &mut self.message);
                if part > 0 {
                    self.message.extend_from_slice(b"\" part=\"");
                    decimal(part + 1, &mut self.message);
                }
                self.message.extend_from_slice(b"\"]");
            }
            self.finish(header, text, out);
            (rest, part) = (after, part + 1);
            if rest.is_empty() {
                return true;
            }
        }
    }

    /// Says in the place of lines how many are missing there. `None`: nobody counted them.
    pub fn loss(&mut self, header: &Header, lines: Option<u64>, time: &str, out: &mut Vec<u8>) {
        let counted = lines.map_or("an unknown number of".to_owned(), |lines| lines.to_string());
        let text = format!("{counted} lines lost: the log was removed before this sink could take it");
        self.message.clear();
        self.begin(header, "<12>1 ", time.as_bytes(), INIT);
        match lines {
            Some(lines) if self.structured_data => {
                self.message
                    .extend_from_slice(format!("[flynn lost=\"{lines}\"]").as_bytes());
            }
            _ => self.message.push(b'-'),
        }
        self.finish(header, text.as_bytes(), out);
    }

    fn begin(&mut self, header: &Header, priority: &str, time: &[u8], id: &str) {
        self.message.extend_from_slice(priority.as_bytes());
        push_time(time, &mut self.message);
        self.message.extend_from_slice(&header.place);
        self.message.extend_from_slice(id.as_bytes());
        self.message.push(b' ');
    }

    fn finish(&mut self, header: &Header, text: &[u8], out: &mut Vec<u8>) {
        let is_before_header = self.format == SyslogFormat::PrefixedNewline;
        if !header.prefix.is_empty() && !is_before_header {
            self.message.push(b' ');
            self.message.extend_from_slice(&header.prefix);
        }
        if !text.is_empty() {
            self.message.push(b' ');
            self.message.extend_from_slice(text);
        }
        match self.format {
            SyslogFormat::Rfc6587 => {
                decimal(self.message.len() as u64, out);
                out.push(b' ');
                out.extend_from_slice(&self.message);
            }
            SyslogFormat::Newline => {
                out.extend_from_slice(&self.message);
                out.push(b'\n');
            }
            SyslogFormat::PrefixedNewline => {
                if !header.prefix.is_empty() {
                    out.extend_from_slice(&header.prefix);
                    out.push(b' ');
                }
                out.extend_from_slice(&self.message);
                out.push(b'\n');
            }
        }
    }
}

impl<'a> Record<'a> {
    fn parse(line: &'a [u8]) -> Option<Record<'a>> {
        let (time, rest) = word(line)?;
        let (stream, rest) = word(rest)?;
        // Facility user; the original's messages were all of kern and emerg, which syslog daemons print
        // on every terminal.
        let kind = match stream {
            b"stdout" => ("<14>1 ", "ID1"),
            b"stderr" => ("<11>1 ", "ID2"),
            b"init" => ("<14>1 ", INIT),
            _ => return None,
        };
        let text = match rest {
            [b'F' | b'P', b' ', text @ ..] => text,
            [b'F' | b'P'] => b"",
            _ => return None,
        };
        Some(Record { time, kind, text })
    }
}

fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(b' ', text)?;
    Some((&text[..at], &text[at + 1..]))
}

/// With six digits of the second's fraction at most; what is no time in UTC is none at all.
fn push_time(time: &[u8], out: &mut Vec<u8>) {
    const MICROSECONDS: usize = "2026-11-23T08:19:38.123456".len();
    let is_time = time.len() >= 20 && time.len() <= 30 && time[10] == b'T' && time[0].is_ascii_digit();
    match time.strip_suffix(b"Z") {
        Some(digits) if is_time => {
            out.extend_from_slice(&digits[..digits.len().min(MICROSECONDS)]);
            out.push(b'Z');
        }
        _ => out.push(b'-'),
    }
}

/// Where a part ends: not within a character of UTF-8, where the text is that.
fn end_of_part(text: &[u8]) -> usize {
    if text.len() <= TEXT_BYTES_MAX {
        return text.len();
    }
    let is_inside = |at: &usize| text[*at] & 0xc0 == 0x80;
    let end = (TEXT_BYTES_MAX - 3..=TEXT_BYTES_MAX)
        .rev()
        .find(|at| !is_inside(at));
    end.unwrap_or(TEXT_BYTES_MAX)
}

fn decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const LINE: &str = "2026-11-23T08:19:38.123456789Z stdout F hello world";
    const JOB: &str = "host0-06b91f19-4b91-401d-abe6-98ab70b3827d";

    fn messages(config: &str, records: &[&str]) -> String {
        let config: SyslogSinkConfig = serde_json::from_str(config).unwrap();
        let (_, template) = config.check().unwrap();
        let mut framer = Framer::new(&config, template);
        let metadata = BTreeMap::from([("token".to_owned(), "t0k".to_owned())]);
        let about = About {
            host: "host0",
            app_id: "1111-app",
            app_name: "shop",
            process: &format!("web.{JOB}"),
            job: TemplateJob {
                id: JOB,
                partition: "",
                metadata: &metadata,
                env: &BTreeMap::new(),
            },
        };
        let header = framer.header(&about);
        let mut out = vec![];
        for (index, record) in records.iter().enumerate() {
            framer.record(&header, record.as_bytes(), index as u64 + 1, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    fn check(config: &str, records: &[&str], expected: &str) {
        assert_eq!(messages(config, records), expected.replace("JOB", JOB));
    }

    #[test]
    fn octets_are_counted_unless_something_else_is_asked_for() {
        check(
            r#"{"url":"syslog://x"}"#,
            &[LINE, "2026-11-23T08:19:39.5Z stderr F oh"],
            "109 <14>1 2026-11-23T08:19:38.123456Z host0 shop web.JOB ID1 - hello world\
             95 <11>1 2026-11-23T08:19:39.5Z host0 shop web.JOB ID2 - oh",
        );
    }

    #[test]
    fn newlines_end_messages_and_the_template_stands_before_the_text() {
        check(
            r#"{"url":"syslog://x","format":"newline","template":"{{.Metadata.token}}","use_ids":true}"#,
            &[LINE],
            "<14>1 2026-11-23T08:19:38.123456Z host0 1111-app web.JOB ID1 - t0k hello world\n",
        );
    }

    #[test]
    fn a_prefix_stands_before_the_header() {
        check(
            r#"{"url":"syslog://x","format":"prefixed_newline","template":"{{.Metadata.token}}","structured_data":true}"#,
            &[LINE, LINE],
            "t0k <14>1 2026-11-23T08:19:38.123456Z host0 shop web.JOB ID1 [flynn seq=\"1\"] hello world\n\
             t0k <14>1 2026-11-23T08:19:38.123456Z host0 shop web.JOB ID1 [flynn seq=\"2\"] hello world\n",
        );
    }

    #[test]
    fn empty_lines_are_messages_and_what_is_no_record_is_none() {
        check(
            r#"{"url":"syslog://x","format":"newline"}"#,
            &[
                "2026-11-23T08:19:38Z init F ",
                "2026-11-23T08:1",
                "x stdout F y",
                "2026-11-23T08:19:38Z stdin F x",
            ],
            "<14>1 2026-11-23T08:19:38Z host0 shop web.JOB ID3 -\n\
             <14>1 - host0 shop web.JOB ID1 - y\n",
        );
    }

    #[test]
    fn a_long_line_becomes_messages_that_tell_their_part() {
        let long = format!(
            "2026-11-23T08:19:38Z stdout F {}é{}",
            "x".repeat(9_999),
            "y".repeat(5)
        );
        let sent = messages(
            r#"{"url":"syslog://x","format":"newline","structured_data":true}"#,
            &[&long],
        );
        let parts: Vec<_> = sent
            .lines()
            .map(|line| line.split_once(" [").unwrap().1)
            .collect();
        assert_eq!(
            parts,
            [
                format!("flynn seq=\"1\"] {}", "x".repeat(9_999)),
                "flynn seq=\"1\" part=\"2\"] éyyyyy".into()
            ]
        );
    }

    #[test]
    fn a_loss_says_how_much() {
        let config: SyslogSinkConfig =
            serde_json::from_str(r#"{"url":"syslog://x","format":"newline","structured_data":true}"#)
                .unwrap();
        let mut framer = Framer::new(&config, Template::default());
        let header = Header {
            place: b" host0 shop web.1 ".to_vec(),
            prefix: vec![],
        };
        let mut out = vec![];
        framer.loss(&header, Some(12), "2026-11-23T08:19:38Z", &mut out);
        framer.loss(&header, None, "2026-11-23T08:19:38Z", &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "<12>1 2026-11-23T08:19:38Z host0 shop web.1 ID3 [flynn lost=\"12\"] 12 lines lost: the log was removed before this sink could take it\n\
             <12>1 2026-11-23T08:19:38Z host0 shop web.1 ID3 - an unknown number of lines lost: the log was removed before this sink could take it\n"
        );
    }
}
