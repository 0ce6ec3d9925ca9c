//! What a log on disk gives back after orderly use, after a power cut, and after damage.

use std::fs;
use std::path::{Path, PathBuf};

use openraft::EntryPayload;
use openraft::RaftLogReader;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use proptest::prelude::*;
use tempfile::TempDir;

use super::recovery::{LogDamage, recover};
use super::{Log, WriterThread};
use crate::consensus::{Entry, LogId, Proposal, Types, Vote, log_id};

fn entry(term: u64, index: u64, text: &str) -> Entry {
    Entry {
        log_id: log_id(term, 1, index),
        payload: EntryPayload::Normal(Proposal::encode(&text).expect("text is JSON")),
    }
}

/// An entry as people read it: `term.index text`.
fn show(entries: &[Entry]) -> Vec<String> {
    let text = |entry: &Entry| match &entry.payload {
        EntryPayload::Normal(command) => command.0.get().to_owned(),
        other => format!("{other:?}"),
    };
    entries
        .iter()
        .map(|entry| {
            format!(
                "{}.{} {}",
                entry.log_id.committed_leader_id().term,
                entry.log_id.index(),
                text(entry)
            )
        })
        .collect()
}

struct Opened {
    log: Log,
    writer: WriterThread,
}

impl Opened {
    fn at(directory: &Path, segment_bytes: u32) -> Self {
        let (log, writer) = Log::open(directory, segment_bytes).expect("the log opens");
        Self { log, writer }
    }

    /// Appends and waits until it is on disk.
    async fn append(&mut self, entries: Vec<Entry>) {
        let (flushed, result) = Types::oneshot();
        self.log
            .append(entries, IOFlushed::signal(flushed))
            .await
            .expect("the log takes entries");
        result
            .await
            .expect("the writer answers")
            .expect("the entries are written");
    }

    async fn all(&mut self) -> Vec<Entry> {
        self.log
            .try_get_log_entries(..)
            .await
            .expect("the log can be read")
    }

    fn close(self) {
        self.writer.close();
    }
}

fn read_back(directory: &Path) -> Result<Vec<LogId>, LogDamage> {
    let index = recover(&directory.join("log"))?;
    let first = super::next_index(index.purged.as_ref());
    Ok((first..index.next())
        .map(|at| index.log_id(at).expect("it is there"))
        .collect())
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    crate::durable::finished_files(&directory.join("log")).expect("the directory can be read")
}

/// A log of three acknowledged batches in one segment; `ends` are the file's lengths after each.
async fn three_batches() -> (TempDir, Vec<usize>, Vec<u64>) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut opened = Opened::at(directory.path(), 1 << 20);
    let (mut ends, mut counts, mut next) = (Vec::new(), Vec::new(), 0);
    for batch in 0..3 {
        let entries = (0..3)
            .map(|at| entry(1, next + at, &format!("batch {batch}")))
            .collect();
        opened.append(entries).await;
        next += 3;
        ends.push(
            fs::metadata(&segments(directory.path())[0])
                .expect("a segment")
                .len() as usize,
        );
        counts.push(next);
    }
    opened.close();
    (directory, ends, counts)
}

/// What is acknowledged when the file has this length for certain.
fn acknowledged(length: usize, ends: &[usize], counts: &[u64]) -> u64 {
    ends.iter()
        .zip(counts)
        .filter(|(end, _)| **end <= length)
        .map(|(_, count)| *count)
        .max()
        .unwrap_or(0)
}

#[tokio::test]
async fn a_log_cut_off_at_any_byte_keeps_what_was_acknowledged_before_it() {
    let (directory, ends, counts) = three_batches().await;
    let segment = segments(directory.path()).remove(0);
    let bytes = fs::read(&segment).expect("the segment");
    let (_, header_end) = super::frame::decode_header(&bytes).expect("a header");
    for length in header_end..=bytes.len() {
        fs::write(&segment, &bytes[..length]).expect("written");
        let found = read_back(directory.path()).unwrap_or_else(|damage| panic!("cut at {length}: {damage}"));
        assert!(
            found.len() as u64 >= acknowledged(length, &ends, &counts),
            "cut at {length}"
        );
        assert!(
            found.iter().enumerate().all(|(at, id)| id.index() == at as u64),
            "cut at {length}"
        );
        // What was cut off stays cut off: a second start sees the same.
        assert_eq!(read_back(directory.path()).expect("opens again"), found);
    }
}

#[tokio::test]
async fn a_flipped_byte_is_an_error_where_it_was_acknowledged_and_cut_off_where_it_may_be_torn() {
    let (directory, ends, counts) = three_batches().await;
    let segment = segments(directory.path()).remove(0);
    let bytes = fs::read(&segment).expect("the segment");
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x41;
        fs::write(&segment, &flipped).expect("written");
        let found = read_back(directory.path());
        if at < ends[1] {
            assert!(
                found.is_err(),
                "byte {at} was acknowledged, but its damage went unnoticed: {found:?}"
            );
        } else {
            // In the last batch, damage looks like a power cut before the sync.
            assert!(found.expect("opens").len() as u64 >= counts[1], "byte {at}");
        }
    }
}

#[tokio::test]
async fn garbage_of_any_length_behind_the_last_frame_is_cut_off() {
    let (directory, _, counts) = three_batches().await;
    let segment = segments(directory.path()).remove(0);
    let bytes = fs::read(&segment).expect("the segment");
    for length in 1..130 {
        for filling in [0u8, 0xff] {
            let mut longer = bytes.clone();
            longer.extend(std::iter::repeat_n(filling, length));
            fs::write(&segment, &longer).expect("written");
            assert_eq!(
                read_back(directory.path()).expect("opens").len() as u64,
                counts[2]
            );
        }
    }
}

#[tokio::test]
async fn a_torn_batch_whose_later_pages_reached_the_disk_first_is_cut_off() {
    let (directory, ends, counts) = three_batches().await;
    let segment = segments(directory.path()).remove(0);
    let mut bytes = fs::read(&segment).expect("the segment");
    bytes[ends[1]..ends[1] + 60].fill(0);
    fs::write(&segment, &bytes).expect("written");
    assert_eq!(
        read_back(directory.path()).expect("opens").len() as u64,
        counts[1]
    );
}

#[tokio::test]
async fn damage_or_loss_of_an_earlier_segment_is_an_error() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut opened = Opened::at(directory.path(), 300);
    for index in 0..12 {
        opened
            .append(vec![entry(1, index, "something to fill a segment with")])
            .await;
    }
    opened.close();
    let all = segments(directory.path());
    assert!(all.len() > 4, "{all:?}");
    let earlier = &all[1];
    let bytes = fs::read(earlier).expect("the segment");
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        fs::write(earlier, &flipped).expect("written");
        read_back(directory.path()).expect_err("damage is noticed");
        fs::write(earlier, &bytes[..at]).expect("written");
        read_back(directory.path()).expect_err("a shortened segment is noticed");
    }
    fs::remove_file(earlier).expect("removed");
    let error = read_back(directory.path()).expect_err("a missing segment is noticed");
    assert!(
        error.to_string().contains("segment number 2 is missing"),
        "{error}"
    );
}

#[tokio::test]
async fn a_segment_of_another_version_is_refused_by_name() {
    let (directory, ..) = three_batches().await;
    let segment = segments(directory.path()).remove(0);
    let bytes = fs::read(&segment).expect("the segment");
    let newer = [b"flynn-log 2\n", &bytes[super::frame::MAGIC.len()..]].concat();
    fs::write(&segment, newer).expect("written");
    let error = read_back(directory.path()).expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("another version of this program: \"flynn-log 2\""),
        "{error}"
    );
}

#[tokio::test]
async fn a_log_that_restarts_after_a_snapshot_forgets_what_was_before() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut opened = Opened::at(directory.path(), 300);
    opened
        .append((0..9).map(|index| entry(1, index, "old")).collect())
        .await;
    // The state before the restart is kept aside, to be put back as a crash would leave it.
    let aside = tempfile::tempdir().expect("a temporary directory");
    let old: Vec<_> = segments(directory.path());
    for path in &old {
        fs::copy(path, aside.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    opened.log.purge(log_id(2, 1, 99)).await.expect("purged");
    opened.append(vec![entry(2, 100, "new")]).await;
    assert_eq!(show(&opened.all().await), ["2.100 \"new\""]);
    opened.close();
    assert_eq!(read_back(directory.path()).expect("opens"), [log_id(2, 1, 100)]);
    for path in &old {
        fs::copy(aside.path().join(path.file_name().expect("a name")), path).expect("copied");
    }
    assert_eq!(read_back(directory.path()).expect("opens"), [log_id(2, 1, 100)]);
}

#[tokio::test]
async fn votes_and_commits_are_there_after_a_restart() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut opened = Opened::at(directory.path(), 1 << 20);
    opened.log.save_vote(&Vote::new(7, 3)).await.expect("saved");
    opened.append(vec![entry(1, 0, "a"), entry(1, 1, "b")]).await;
    opened
        .log
        .save_committed(Some(log_id(1, 1, 1)))
        .await
        .expect("noted");
    opened.close();
    let mut opened = Opened::at(directory.path(), 1 << 20);
    assert_eq!(opened.log.read_vote().await.expect("read"), Some(Vote::new(7, 3)));
    assert_eq!(
        opened.log.read_committed().await.expect("read"),
        Some(log_id(1, 1, 1))
    );
    opened.close();

    let vote = directory.path().join("vote.json");
    let damaged = fs::read_to_string(&vote)
        .expect("the vote")
        .replace("\"term\":7", "\"term\":6");
    fs::write(&vote, damaged).expect("written");
    assert!(
        Log::open(directory.path(), 1 << 20).is_err(),
        "a damaged vote is not taken for none"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        count: u64,
        bytes: usize,
    },
    /// A new leader overrules this many of the last entries.
    Overrule(u64),
    /// Lets go of this many of the first entries.
    Purge(u64),
    Restart,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..20u64, 1..400usize).prop_map(|(count, bytes)| Step::Append { count, bytes }),
        1 => (0..12u64).prop_map(Step::Overrule),
        1 => (1..30u64).prop_map(Step::Purge),
        1 => Just(Step::Restart),
        2 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..25)
}

/// The log as a plain vector.
#[derive(Default)]
struct Model {
    entries: Vec<Entry>,
    purged: Option<LogId>,
    term: u64,
}

impl Model {
    fn next(&self) -> u64 {
        super::next_index(
            self.entries
                .last()
                .map(|entry| entry.log_id)
                .or(self.purged)
                .as_ref(),
        )
    }
}

async fn check(steps: Vec<Step>) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut model = Model {
        term: 1,
        ..Model::default()
    };
    let mut opened = Opened::at(directory.path(), 2000);
    for step in steps {
        match step {
            Step::Append { count, bytes } => {
                let text = "x".repeat(bytes);
                let first = model.next();
                let entries: Vec<_> = (first..first + count)
                    .map(|index| entry(model.term, index, &text))
                    .collect();
                model.entries.extend(entries.clone());
                opened.append(entries).await;
            }
            Step::Overrule(count) => {
                let keep = model.entries.len().saturating_sub(count as usize);
                model.entries.truncate(keep);
                model.term += 1;
                let last = model.entries.last().map(|entry| entry.log_id).or(model.purged);
                opened.log.truncate_after(last).await.expect("truncated");
            }
            Step::Purge(count) => {
                let count = model.entries.len().min(count as usize);
                if let Some(upto) = model.entries.drain(..count).next_back() {
                    model.purged = Some(upto.log_id);
                    opened.log.purge(upto.log_id).await.expect("purged");
                }
            }
            Step::Restart => {
                let upto = log_id(model.term, 1, model.next() + 5);
                model.entries.clear();
                model.purged = Some(upto);
                opened.log.purge(upto).await.expect("purged");
            }
            Step::Reopen => {
                opened.close();
                opened = Opened::at(directory.path(), 2000);
            }
        }
        // Whole segments are purged: after a restart entries before the purged ones may show again.
        let first = super::next_index(model.purged.as_ref());
        let found = opened
            .log
            .try_get_log_entries(first..)
            .await
            .expect("the log can be read");
        assert_eq!(show(&found), show(&model.entries));
        let state = opened.log.get_log_state().await.expect("a state");
        assert_eq!(
            state.last_log_id,
            model.entries.last().map(|entry| entry.log_id).or(model.purged)
        );
        assert!(state.last_purged_log_id <= model.purged);
        let limited = opened
            .log
            .limited_get_log_entries(first, model.next())
            .await
            .expect("the log can be read");
        assert_eq!(show(&limited), show(&model.entries[..limited.len()]));
        assert!(!limited.is_empty() || model.entries.is_empty());
        if let (Some(first), Some(last)) = (model.entries.first(), model.entries.last()) {
            let keys = opened
                .log
                .get_key_log_ids(first.log_id..=last.log_id)
                .await
                .expect("key ids");
            let mut expected: Vec<LogId> = Vec::new();
            for entry in &model.entries {
                let leader = entry.log_id.committed_leader_id();
                if expected
                    .last()
                    .is_some_and(|id| id.committed_leader_id() == leader)
                {
                    expected.pop();
                }
                expected.push(entry.log_id);
            }
            assert_eq!(keys, expected);
        }
    }
    opened.close();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_log_holds_what_a_vector_would(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(check(steps));
    }
}
