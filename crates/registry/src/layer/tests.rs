//! Archives into images, looked at through the kernel: each image is mounted, detached, and read.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::PathBuf,
};

use tar::{Builder, EntryType, Header};

use super::{
    archive::{Accounts, Limits},
    worker::{self, Answer, Converted},
};

/// An archive in the making.
struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Tar {
        Tar(Builder::new(vec![]))
    }

    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_600_000_000);
        header
    }

    fn file(mut self, path: &str, content: &[u8]) -> Tar {
        let mut header = Tar::header(EntryType::Regular, 0o640, content.len() as u64);
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    fn dir(mut self, path: &str, mode: u32) -> Tar {
        let mut header = Tar::header(EntryType::Directory, mode, 0);
        self.0.append_data(&mut header, path, io::empty()).unwrap();
        self
    }

    fn link(mut self, kind: EntryType, path: &str, target: &str) -> Tar {
        let mut header = Tar::header(kind, 0o777, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    /// A name that the library would refuse to write.
    fn raw(mut self, kind: EntryType, path: &[u8], target: &[u8], content: &[u8]) -> Tar {
        let mut header = Tar::header(kind, 0o644, content.len() as u64);
        let bytes = header.as_mut_bytes();
        bytes[..path.len()].copy_from_slice(path);
        bytes[157..157 + target.len()].copy_from_slice(target);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn pax(mut self, entries: &[(&str, &[u8])]) -> Tar {
        self.0.append_pax_extensions(entries.iter().copied()).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn convert_with(archive: &[u8], limits: &Limits) -> (Answer, File) {
    let (mut input, output) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    input.write_all(archive).unwrap();
    io::Seek::rewind(&mut input).unwrap();
    let answer = worker::run(input, output.try_clone().unwrap(), limits);
    (answer, output)
}

fn refused(archive: Vec<u8>, expected: &str) {
    match convert_with(&archive, &Limits::default()).0 {
        Answer::Refused(text) => assert!(text.contains(expected), "{text}"),
        other => panic!("{other:?}"),
    }
}

/// A converted archive, mounted where nobody else sees it.
struct Image {
    converted: Converted,
    root: PathBuf,
    _mount: OwnedFd,
}

fn image(archive: &[u8]) -> Image {
    let (answer, output) = convert_with(archive, &Limits::default());
    let Answer::Done(converted) = answer else {
        panic!("{answer:?}")
    };
    let path = PathBuf::from(format!("/proc/self/fd/{}", output.as_raw_fd()));
    let mount = container::layers::open(&path).expect("tests of containers need root");
    Image {
        converted,
        root: PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())),
        _mount: mount,
    }
}

impl Image {
    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn meta(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn names(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.root.join(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let mut value = [0; 100];
        let length = rustix::fs::lgetxattr(self.root.join(path), name, &mut value).ok()?;
        Some(value[..length].to_vec())
    }
}

/// Bytes without a pattern that repeats.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 88172645463325252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn files_of_all_lengths_come_out_as_they_went_in() {
    let lengths = [
        0, 1, 4031, 4032, 4033, 4095, 4096, 4097, 65_535, 65_536, 65_537, 200_000, 1_500_000,
    ];
    let mut tar = Tar::new();
    for length in lengths {
        tar = tar.file(&format!("f{length}"), &noise(length));
    }
    let image = image(&tar.bytes());
    for length in lengths {
        assert!(image.read(&format!("f{length}")) == noise(length), "{length}");
    }
    let meta = image.meta("f4097");
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mtime(), meta.nlink()),
        (7, 8, 1_600_000_000, 1)
    );
    assert_eq!(meta.permissions().mode() & 0o7777, 0o640);
}

#[test]
fn directories_of_many_names_are_found_and_listed() {
    let mut tar = Tar::new().dir("many", 0o1777);
    // As many as need several blocks, and names on both sides of `.` and `..`.
    for index in 0..2000 {
        tar = tar.file(
            &format!("many/{}name-{index:04}", if index % 2 == 0 { "!" } else { "z" }),
            b"x",
        );
    }
    let image = image(&tar.bytes());
    assert_eq!(image.names("many").len(), 2000);
    assert_eq!(image.read("many/!name-1998"), b"x");
    assert_eq!(image.read("many/zname-0001"), b"x");
    assert!(!image.root.join("many/name").exists());
    assert_eq!(image.meta("many").permissions().mode() & 0o7777, 0o1777);
    assert_eq!(image.meta("many/..").ino(), image.meta(".").ino());
}

#[test]
fn links_long_names_and_what_an_archive_leaves_out() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(250));
    let deep = format!("{}end", "x/".repeat(500));
    let image = image(
        &Tar::new()
            .file("./bin/real", b"here")
            .link(EntryType::Symlink, "bin/soft", "/etc/anywhere/../x")
            .link(EntryType::Link, "bin/hard", "bin/real")
            .link(EntryType::Link, "bin/also", "/bin/hard")
            .file(&long, b"long")
            .file(&deep, b"deep")
            .file("tmp/x", b"")
            .raw(EntryType::Fifo, b"pipe", b"", b"")
            .raw(EntryType::Char, b"dev/null", b"", b"")
            .bytes(),
    );
    assert_eq!(
        fs::read_link(image.root.join("bin/soft")).unwrap(),
        PathBuf::from("/etc/anywhere/../x")
    );
    assert_eq!(image.read("bin/also"), b"here");
    assert_eq!(image.meta("bin/real").nlink(), 3);
    assert_eq!(image.meta("bin/real").ino(), image.meta("bin/hard").ino());
    assert_eq!(
        (image.read(&long), image.read(&deep)),
        (b"long".to_vec(), b"deep".to_vec())
    );
    assert!(image.meta("pipe").file_type().is_fifo());
    assert_eq!(image.meta("tmp").permissions().mode() & 0o7777, 0o1777);
    assert_eq!(image.meta("bin").permissions().mode() & 0o7777, 0o755);
    assert_eq!(image.names("dev"), [""; 0]);
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let image = image(
        &Tar::new()
            .file("a", b"old")
            .link(EntryType::Link, "b", "a")
            .file("a", b"new")
            .dir("d", 0o700)
            .file("d/inside", b"gone")
            .file("d", b"a file now")
            .bytes(),
    );
    assert_eq!(
        (image.read("a"), image.read("b")),
        (b"new".to_vec(), b"old".to_vec())
    );
    assert_eq!((image.meta("a").nlink(), image.meta("b").nlink()), (1, 1));
    assert_eq!(image.read("d"), b"a file now");
}

#[test]
fn whiteouts_become_what_overlayfs_has_for_them() {
    let image = image(
        &Tar::new()
            .file("etc/.wh.shadow", b"")
            .file(".wh.gone", b"")
            .dir("again", 0o755)
            .file(".wh.again", b"")
            .file("stays", b"x")
            .file(".wh.stays", b"")
            .file("empty/.wh..wh..opq", b"")
            .file("empty/new", b"x")
            .file(".wh..wh.plnk", b"")
            .bytes(),
    );
    for path in ["etc/shadow", "gone"] {
        let meta = image.meta(path);
        assert!(meta.file_type().is_char_device() && meta.rdev() == 0, "{path}");
    }
    assert_eq!(image.read("stays"), b"x");
    let opaque = |path: &str| image.xattr(path, "trusted.overlay.opaque");
    assert_eq!(
        (opaque("again"), opaque("empty")),
        (Some(b"y".to_vec()), Some(b"y".to_vec()))
    );
    assert_eq!(opaque("etc"), None);
    assert_eq!(image.names(""), ["again", "empty", "etc", "gone", "stays"]);
}

#[test]
fn attributes_of_programs_stay_and_those_of_the_host_do_not() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let image = image(
        &Tar::new()
            .pax(&[
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.user.note", b"hello"),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("SCHILY.xattr.security.selinux", b"label"),
            ])
            .file("ping", &noise(5000))
            .bytes(),
    );
    assert_eq!(
        image.xattr("ping", "security.capability"),
        Some(capability.to_vec())
    );
    assert_eq!(image.xattr("ping", "user.note"), Some(b"hello".to_vec()));
    assert_eq!(image.xattr("ping", "trusted.overlay.redirect"), None);
    assert_eq!(image.read("ping"), noise(5000));
}

#[test]
fn sparse_files_are_unpacked_whichever_way_tar_packed_them() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let bytes = (3 << 20) + 77;
    let holed = File::create(dir.path().join("holed")).unwrap();
    holed.set_len(bytes).unwrap();
    for (at, text) in [(0, "begin"), (1 << 20, "middle"), (bytes - 3, "end")] {
        holed.write_all_at(text.as_bytes(), at).unwrap();
    }
    File::create(dir.path().join("empty"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    for kind in [
        "--format=gnu",
        "--sparse-version=0.0",
        "--sparse-version=0.1",
        "--sparse-version=1.0",
    ] {
        let format = if kind.starts_with("--sparse") {
            "--format=posix"
        } else {
            kind
        };
        let tar = std::process::Command::new("tar")
            .args(["--create", "--sparse", kind, format, "--directory"])
            .arg(dir.path())
            .args(["holed", "empty"])
            .output()
            .unwrap();
        assert!(
            tar.status.success(),
            "{kind}: {}",
            String::from_utf8_lossy(&tar.stderr)
        );
        assert!(tar.stdout.len() < 100_000, "{kind} is not sparse");
        let image = image(&tar.stdout);
        let expected = std::fs::read(dir.path().join("holed")).unwrap();
        assert!(image.read("holed") == expected, "{kind}");
        assert_eq!(image.read("empty"), vec![0; 1 << 20], "{kind}");
    }
}

#[test]
fn runs_of_zeroes_take_no_room() {
    let mut content = vec![0; 40 << 20];
    content[..5].copy_from_slice(b"begin");
    content[20 << 20..(20 << 20) + 6].copy_from_slice(b"middle");
    content.extend_from_slice(b"end");
    let image = image(&Tar::new().file("sparse", &content).bytes());
    assert!(image.read("sparse") == content);
    assert!(image.converted.length < 1 << 20, "{}", image.converted.length);
    // All the way through, so that the map needs more than a block.
    let mut content = vec![0; 200 << 20];
    content[199 << 20] = 7;
    let image = self::image(&Tar::new().file("sparse", &content).file("after", b"x").bytes());
    assert!(image.read("sparse") == content);
    assert_eq!(image.read("after"), b"x");
}

#[test]
fn compressed_or_not_the_image_is_the_same() {
    let tar = Tar::new().file("a/b", &noise(10_000)).dir("c", 0o755).bytes();
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    gzip.write_all(&tar[..700]).unwrap();
    let mut packed = gzip.finish().unwrap();
    // Two members: some tools write one after the other.
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    gzip.write_all(&tar[700..]).unwrap();
    packed.extend(gzip.finish().unwrap());
    let zstd = ruzstd::encoding::compress_to_vec(&tar[..], ruzstd::encoding::CompressionLevel::Fastest);
    let mut frames = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    frames.extend(&zstd);
    let digests: Vec<_> = [&tar, &packed, &zstd, &frames]
        .map(|bytes| image(bytes).converted)
        .into_iter()
        .map(|converted| (converted.digest, converted.contents.diff_id))
        .collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    assert_eq!(digests[0].1, crate::name::BlobDigest::of(&tar).hex());
}

#[test]
fn accounts_are_read_on_the_way() {
    let found = |tar: Tar| image(&tar.bytes()).converted.contents;
    let contents = found(Tar::new().file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"));
    assert_eq!(
        contents.passwd,
        Accounts::Text("root:x:0:0::/root:/bin/sh\n".into())
    );
    assert_eq!(contents.group, Accounts::Unchanged);
    assert_eq!(
        found(Tar::new().file("etc/.wh.passwd", b"")).passwd,
        Accounts::Removed
    );
    assert_eq!(
        found(Tar::new().file("etc/.wh..wh..opq", b"")).group,
        Accounts::Removed
    );
}

#[test]
fn what_leads_out_of_the_image_is_refused() {
    refused(
        Tar::new()
            .raw(EntryType::Regular, b"../../etc/cron.d/x", b"", b"x")
            .bytes(),
        "leads out",
    );
    refused(
        Tar::new()
            .raw(EntryType::Regular, b"a/../../x", b"", b"x")
            .bytes(),
        "leads out",
    );
    refused(
        Tar::new().raw(EntryType::Regular, b"a/.wh...", b"", b"").bytes(),
        "leads out",
    );
    refused(
        Tar::new()
            .link(EntryType::Symlink, "out", "/etc")
            .raw(EntryType::Regular, b"out/passwd", b"", b"x")
            .bytes(),
        "no directory",
    );
    refused(
        Tar::new().raw(EntryType::Link, b"x", b"/etc/shadow", b"").bytes(),
        "not in the layer",
    );
    refused(
        Tar::new()
            .raw(EntryType::Link, b"x", b"../../etc/shadow", b"")
            .bytes(),
        "leads out",
    );
    refused(
        Tar::new()
            .dir("d", 0o755)
            .raw(EntryType::Link, b"x", b"d", b"")
            .bytes(),
        "to a directory",
    );
    refused(
        Tar::new().raw(EntryType::Link, b"x", b"x", b"").bytes(),
        "not in the layer",
    );
}

#[test]
fn devices_are_refused_outside_of_dev() {
    refused(
        Tar::new().raw(EntryType::Block, b"data/sda", b"", b"").bytes(),
        "is a device",
    );
    refused(
        Tar::new().raw(EntryType::Char, b"mem", b"", b"").bytes(),
        "is a device",
    );
}

#[test]
fn bombs_are_refused_before_they_go_off() {
    let limits = Limits {
        bytes_max: 1 << 20,
        entries_max: 10,
        ..Limits::default()
    };
    let check = |archive: &[u8], limits: &Limits, expected: &str| {
        let (answer, output) = convert_with(archive, limits);
        assert!(
            matches!(&answer, Answer::Refused(text) if text.contains(expected)),
            "{answer:?}"
        );
        assert!(output.metadata().unwrap().len() < 4 << 20);
    };
    check(
        &Tar::new().file("big", &vec![1; 2 << 20]).bytes(),
        &limits,
        "more than 1048576 bytes",
    );
    let many = (0..20).fold(Tar::new(), |tar, index| tar.file(&index.to_string(), b""));
    check(&many.bytes(), &limits, "more than 10 entries");
    // 8 MB of zeroes in 8 kB.
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    gzip.write_all(&Tar::new().file("zero", &vec![0; 8 << 20]).bytes())
        .unwrap();
    let ratio = Limits {
        ratio_free_bytes: 1 << 20,
        ..Limits::default()
    };
    check(&gzip.finish().unwrap(), &ratio, "bytes when unpacked");
    // A sparse file that says it is huge.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(0);
    header.set_path("sparse").unwrap();
    let gnu = header.as_gnu_mut().unwrap();
    gnu.realsize.copy_from_slice(b"77777777777\0");
    gnu.sparse[0].offset.copy_from_slice(b"77777777777\0");
    gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
    header.set_cksum();
    let mut tar = Builder::new(vec![]);
    tar.append(&header, io::empty()).unwrap();
    check(&tar.into_inner().unwrap(), &limits, "files are more than");
}

#[test]
fn what_is_no_archive_is_refused_in_words() {
    let tar = Tar::new().file("x", &noise(5000)).bytes();
    refused(tar[..3000].to_vec(), "cannot be read");
    refused(noise(5000), "cannot be read");
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let packed = gzip.finish().unwrap();
    refused(packed[..packed.len() / 2].to_vec(), "cannot be read");
    refused(vec![0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff, 0xff], "cannot be read");
    refused(vec![0xfd, b'7', b'z', b'X', b'Z', 0], "bzip2 or xz");
    refused(
        Tar::new().raw(EntryType::new(b'V'), b"x", b"", b"").bytes(),
        "a kind that is not known",
    );
    let lies: [&[(&str, &[u8])]; 5] = [
        &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,2")],
        &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"9,1")],
        &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"4,1,2")],
        &[("GNU.sparse.size", b"-9"), ("GNU.sparse.map", b"0,1")],
        &[
            ("GNU.sparse.size", b"18446744073709551615"),
            ("GNU.sparse.map", b"18446744073709551615,1"),
        ],
    ];
    for lie in lies {
        refused(Tar::new().pax(lie).file("x", b"x").bytes(), "");
    }
    let named: [(&str, &[u8]); 3] = [
        ("GNU.sparse.name", b"../x"),
        ("GNU.sparse.size", b"1"),
        ("GNU.sparse.map", b"0,1"),
    ];
    refused(
        Tar::new().pax(&named).file("x", b"x").bytes(),
        "leads out of the image",
    );
    let mut map = b"99999999999\n".to_vec();
    map.resize(512, b'7');
    let endless: [(&str, &[u8]); 2] = [("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")];
    refused(
        Tar::new().pax(&endless).file("x", &map).bytes(),
        "map does not fit",
    );
    let attributes = Tar::new()
        .pax(&[("SCHILY.xattr.user.x", &[b'x'; 3000])])
        .file("x", b"x");
    refused(attributes.bytes(), "extended attributes");
}

#[test]
fn an_empty_archive_is_an_empty_layer() {
    let image = image(&Tar::new().bytes());
    assert_eq!(image.names(""), [""; 0]);
    let mut first = [0; 4];
    File::open(image.root.join("."))
        .map(|mut dir| dir.read(&mut first).unwrap_err())
        .unwrap();
}
