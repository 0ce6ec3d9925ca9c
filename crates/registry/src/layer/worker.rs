//! The process that converts one layer: a blob on standard input, an empty file on standard output,
//! and on standard error one line of JSON, [`Answer`].
//!
//! It reads what strangers made. So before the first byte it gives up everything that it does not need:
//! users, network, the file system, memory and files beyond a limit. What is left are three descriptors.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::fd::AsFd,
    process::ExitCode,
};

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::archive::{Contents, Limits, Refusal, convert};

/// Names in an archive are kept until its end: a million of them take about 300 MB.
const MEMORY_BYTES_MAX: u64 = 1 << 30;
const CPU_SECONDS_MAX: u64 = 1800;
const READ_BYTES: usize = 256 << 10;
const NOBODY: u32 = 65_534;

/// How a conversion ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    Done(Converted),
    /// The layer is at fault.
    Refused(String),
    /// This host is: its disk, its memory.
    Failed(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Converted {
    /// SHA-256 of the image file.
    pub digest: String,
    pub length: u64,
    pub contents: Contents,
}

/// Runs as the process; `limits` is the JSON of [`Limits`].
pub fn main(limits: &str, jail: &std::path::Path) -> ExitCode {
    let answer = match confine(jail) {
        Ok((blob, output)) => match serde_json::from_str(limits) {
            Ok(limits) => run(blob, output, &limits),
            Err(error) => Answer::Failed(format!("limits: {error}")),
        },
        Err(error) => Answer::Failed(format!("cannot be confined: {error}")),
    };
    eprintln!("{}", serde_json::to_string(&answer).expect("an answer is JSON"));
    ExitCode::SUCCESS
}

fn confine(jail: &std::path::Path) -> io::Result<(File, File)> {
    use nix::sys::resource::{Resource, setrlimit};
    use nix::unistd::{Gid, Uid};
    let blob = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    for (resource, limit) in [
        (Resource::RLIMIT_AS, MEMORY_BYTES_MAX),
        (Resource::RLIMIT_CPU, CPU_SECONDS_MAX),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, 16),
    ] {
        setrlimit(resource, limit, limit)?;
    }
    // Conversions must not be felt by the apps of this host.
    let _ = rustix::process::nice(10);
    if rustix::process::geteuid().is_root() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET | nix::sched::CloneFlags::CLONE_NEWIPC)?;
        nix::unistd::chroot(jail)?;
        std::env::set_current_dir("/")?;
        nix::unistd::setgroups(&[])?;
        nix::unistd::setgid(Gid::from_raw(NOBODY))?;
        nix::unistd::setuid(Uid::from_raw(NOBODY))?;
    }
    rustix::thread::set_no_new_privs(true)?;
    Ok((blob, output))
}

/// The conversion itself.
pub fn run(blob: File, output: File, limits: &Limits) -> Answer {
    match try_run(blob, output, limits) {
        Ok(done) => Answer::Done(done),
        Err(Refusal::Archive(text)) => Answer::Refused(text),
        Err(Refusal::Io(error)) => Answer::Failed(error.to_string()),
    }
}

fn try_run(blob: File, output: File, limits: &Limits) -> Result<Converted, Refusal> {
    let packed_bytes = blob.metadata()?.len();
    let (contents, mut file) = convert(unpacked(blob)?, packed_bytes, output, limits)?;
    file.seek(SeekFrom::Start(0))?;
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                length += count as u64;
            }
        }
    }
    Ok(Converted {
        digest: hex::encode(hash.finalize()),
        length,
        contents,
    })
}

/// By what the bytes are, as clients are not always right about it.
fn unpacked(mut blob: File) -> Result<Box<dyn Read>, Refusal> {
    let mut magic = [0; 4];
    let mut known = 0;
    while known < magic.len() {
        match blob.read(&mut magic[known..])? {
            0 => break,
            count => known += count,
        }
    }
    blob.seek(SeekFrom::Start(0))?;
    let blob = BufReader::with_capacity(READ_BYTES, blob);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(READ_BYTES, MultiGzDecoder::new(blob))),
        // Frames that are to be skipped may come first.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            Box::new(BufReader::with_capacity(READ_BYTES, Frames::new(blob)))
        }
        [b'B', b'Z', b'h', _] | [0xfd, b'7', b'z', b'X'] => {
            return Err(Refusal::Archive(
                "it is packed by bzip2 or xz; gzip and zstd are understood".into(),
            ));
        }
        _ => Box::new(blob),
    })
}

/// Zstandard frames, one after the other.
struct Frames {
    decoder: Option<ruzstd::decoding::StreamingDecoder<BufReader<File>, ruzstd::decoding::FrameDecoder>>,
    input: Option<BufReader<File>>,
}

impl Frames {
    fn new(input: BufReader<File>) -> Frames {
        Frames {
            decoder: None,
            input: Some(input),
        }
    }
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use ruzstd::decoding::StreamingDecoder;
        use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
        loop {
            if let Some(decoder) = &mut self.decoder {
                let count = decoder.read(buffer)?;
                if count > 0 || buffer.is_empty() {
                    return Ok(count);
                }
                self.input = self.decoder.take().map(StreamingDecoder::into_inner);
            }
            let Some(mut input) = self.input.take() else {
                return Ok(0);
            };
            if io::BufRead::fill_buf(&mut input)?.is_empty() {
                return Ok(0);
            }
            // The decoder keeps its input where it cannot begin, so a skipped frame is read by hand.
            let head = io::BufRead::fill_buf(&mut input)?;
            if head.len() >= 8 && (0x50..=0x5f).contains(&head[0]) && head[1..4] == [0x2a, 0x4d, 0x18] {
                let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
                let skipped = u64::from(length) + 8;
                io::copy(&mut (&mut input).take(skipped), &mut io::sink())?;
                self.input = Some(input);
                continue;
            }
            match StreamingDecoder::new(input) {
                Ok(decoder) => self.decoder = Some(decoder),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::MagicNumberReadError(
                    _,
                ))) => return Ok(0),
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
        }
    }
}
