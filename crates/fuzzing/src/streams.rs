//! What arrives bit by bit: attached streams, events, and lines of logs.

use api::{
    attach::{Frame, FrameError},
    sse,
};
use bytes::BytesMut;
use types::logline::Record;

pub fn attach_frames(bytes: &[u8]) {
    let mut whole = BytesMut::from(bytes);
    let (frames, error) = frames(&mut whole);
    let (mut input, mut read, mut error_of_pieces) = (BytesMut::new(), vec![], None);
    for piece in crate::pieces(bytes) {
        input.extend_from_slice(piece);
        let (mut more, error) = self::frames(&mut input);
        read.append(&mut more);
        if error.is_some() {
            error_of_pieces = error;
            break;
        }
    }
    assert_eq!((&frames, &error), (&read, &error_of_pieces));

    let mut written = BytesMut::new();
    frames.iter().for_each(|frame| frame.write(&mut written));
    assert_eq!(self::frames(&mut written), (frames, None));
}

fn frames(input: &mut BytesMut) -> (Vec<Frame>, Option<FrameError>) {
    let mut frames = vec![];
    loop {
        match Frame::read(input) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error)),
        }
    }
}

pub fn server_sent_events(bytes: &[u8]) {
    let mut whole = sse::Parser::default();
    whole.push(bytes);
    let messages = messages(&mut whole);
    let (mut cut, mut read) = (sse::Parser::default(), vec![]);
    for piece in crate::pieces(bytes) {
        cut.push(piece);
        read.append(&mut self::messages(&mut cut));
    }
    assert_eq!(messages, read);
    for message in messages {
        // What we would send for it is read as the same.
        let sse::Message::Data(data) = message else {
            continue;
        };
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(&data) else {
            continue;
        };
        let mut again = sse::Parser::default();
        again.push(&sse::message(&value));
        let expected = sse::Message::Data(serde_json::to_vec(&value).expect("it is JSON").into());
        assert_eq!(self::messages(&mut again), [expected]);
    }
}

fn messages(parser: &mut sse::Parser) -> Vec<sse::Message> {
    std::iter::from_fn(|| parser.next_message().expect("the input is short")).collect()
}

pub fn log_records(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(record) = Record::parse(line) else {
            continue;
        };
        let mut written = vec![];
        record.write(&mut written);
        let line = written.strip_suffix(b"\n").expect("a record ends in a newline");
        assert_eq!(
            Record::parse(line),
            Some(record),
            "{:?}",
            String::from_utf8_lossy(line)
        );
    }
}
