//! What the crates may depend on, and what no file may contain: read from the manifests.
//!
//! ```text
//! product    flynn-host, flynn-cli
//! component  agent, controller, router, …     meet only through platform crates
//! platform   api, store, daemon, …
//! brain      scheduler, routing, …            no I/O, no async, no clock, no randomness
//! types      types
//! ```
//!
//! A crate says its storey in `package.metadata.flynn.layer`. It depends on lower storeys only, so no
//! two of one storey depend on each other. Tests may reach sideways (`dev-dependencies`), and crates
//! of the layer `dev` may use everything, because nothing that is shipped contains them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use toml::{Table, Value};

/// From the ground up.
const STOREYS: [&str; 6] = ["types", "brain", "platform", "component", "product", "dev"];

/// What would bring I/O, async code, a clock or randomness into deciding code.
const NOT_FOR_DECIDING: &[&str] = &[
    "async-trait",
    "axum",
    "futures",
    "getrandom",
    "h2",
    "hickory-resolver",
    "hyper",
    "hyper-util",
    "libc",
    "libcontainer",
    "nix",
    "openraft",
    "rand",
    "reqwest",
    "rtnetlink",
    "rustix",
    "rustls",
    "socket2",
    "tempfile",
    "tokio",
    "tokio-rustls",
    "tokio-stream",
    "tokio-util",
    "tower",
    "tracing",
];

/// Licences of code that may be linked into what is shipped. `deny.toml` has the same list.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

struct Member {
    name: String,
    directory: PathBuf,
    manifest: Table,
}

impl Member {
    fn storey(&self) -> Option<usize> {
        let flynn = self.manifest.get("package")?.get("metadata")?.get("flynn")?;
        let layer = flynn.get("layer")?.as_str()?;
        STOREYS.iter().position(|storey| *storey == layer)
    }

    fn is_deciding(&self) -> bool {
        self.storey()
            .is_some_and(|storey| STOREYS[storey] == "types" || STOREYS[storey] == "brain")
    }

    fn dependencies(&self, section: &str) -> impl Iterator<Item = (&String, &Value)> {
        self.manifest
            .get(section)
            .and_then(Value::as_table)
            .into_iter()
            .flatten()
    }

    fn all_dependencies(&self) -> impl Iterator<Item = (&String, &Value)> {
        let sections = ["dependencies", "dev-dependencies", "build-dependencies"];
        sections
            .into_iter()
            .flat_map(|section| self.dependencies(section))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a member lies in the workspace")
}

fn read_manifest(path: &Path) -> Table {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn members() -> Vec<Member> {
    let crates = fs::read_dir(root().join("crates")).expect("the workspace has crates");
    let mut directories: Vec<_> = crates
        .map(|entry| entry.expect("it can be read").path())
        .collect();
    for member in read_manifest(&root().join("Cargo.toml"))["workspace"]["members"]
        .as_array()
        .expect("a list")
    {
        let member = member.as_str().expect("a path");
        if member != "crates/*" {
            directories.push(root().join(member));
        }
    }
    directories.retain(|directory| directory.join("Cargo.toml").exists());
    directories.sort();
    let read = |directory: PathBuf| {
        let manifest = read_manifest(&directory.join("Cargo.toml"));
        let name = manifest["package"]["name"]
            .as_str()
            .expect("a package has a name")
            .to_owned();
        Member {
            name,
            directory,
            manifest,
        }
    };
    directories.into_iter().map(read).collect()
}

#[track_caller]
fn expect_none(what: &str, findings: impl IntoIterator<Item = String>) {
    let findings: Vec<_> = findings.into_iter().collect();
    assert!(findings.is_empty(), "{what}:\n  {}", findings.join("\n  "));
}

#[test]
fn every_crate_says_which_storey_it_stands_on() {
    let homeless = members().into_iter().filter(|member| member.storey().is_none());
    expect_none(
        &format!("package.metadata.flynn.layer must be one of {STOREYS:?}"),
        homeless.map(|member| member.name),
    );
}

#[test]
fn dependencies_point_down() {
    let members = members();
    let storeys: BTreeMap<_, _> = members
        .iter()
        .map(|member| (&member.name, member.storey()))
        .collect();
    let mut wrong = vec![];
    for member in &members {
        for (section, is_sideways_allowed) in [
            ("dependencies", false),
            ("build-dependencies", false),
            ("dev-dependencies", true),
        ] {
            for (name, _) in member.dependencies(section) {
                let Some(other) = storeys.get(name) else { continue };
                let is_down = *other < member.storey() || is_sideways_allowed && *other == member.storey();
                if !is_down {
                    wrong.push(format!("{} -> {name} ({section})", member.name));
                }
            }
        }
    }
    expect_none("dependencies on the same or a higher storey", wrong);
}

#[test]
fn deciding_crates_have_nothing_to_act_with() {
    let members = members();
    let wrong = members
        .iter()
        .filter(|member| member.is_deciding())
        .flat_map(|member| {
            let names = member.dependencies("dependencies").map(|(name, _)| name.as_str());
            let tools = names.filter(|name| NOT_FOR_DECIDING.contains(name));
            tools.map(|name| format!("{} -> {name}", member.name))
        });
    expect_none("types and brains that could act", wrong);
}

/// A crate's own clippy.toml replaces the workspace's, so that each has the whole list.
#[test]
fn deciding_crates_all_ban_the_same() {
    let bans = |directory: &Path| fs::read_to_string(directory.join("clippy.toml")).unwrap_or_default();
    let expected = bans(&root().join("crates/scheduler"));
    for banned in [
        "std::time::Instant::now",
        "std::time::SystemTime::now",
        "HashMap",
        "HashSet",
        "std::fs::File",
    ] {
        assert!(
            expected.contains(banned),
            "crates/scheduler/clippy.toml does not ban {banned}"
        );
    }
    let members = members();
    let others = members
        .iter()
        .filter(|member| member.is_deciding() && bans(&member.directory) != expected);
    expect_none(
        "their clippy.toml is not the same as crates/scheduler's",
        others.map(|member| member.name.clone()),
    );
}

#[test]
fn versions_and_features_of_dependencies_stand_in_one_table() {
    let members = members();
    let workspace = Value::Table(
        [("workspace".to_owned(), Value::Boolean(true))]
            .into_iter()
            .collect(),
    );
    let own = members.iter().flat_map(|member| {
        let own = member.all_dependencies().filter(|(_, from)| **from != workspace);
        own.map(|(name, from)| format!("{}: {name} = {from}", member.name))
    });
    expect_none(
        "dependencies that do not come from the workspace's table as they are",
        own,
    );

    let used: BTreeSet<_> = members
        .iter()
        .flat_map(Member::all_dependencies)
        .map(|(name, _)| name)
        .collect();
    let manifest = read_manifest(&root().join("Cargo.toml"));
    let table = manifest["workspace"]["dependencies"].as_table().expect("a table");
    let unused = table.keys().filter(|name| !used.contains(name));
    expect_none(
        "lines of the workspace's table that no member uses",
        unused.cloned(),
    );
}

#[test]
fn every_dependency_is_named_in_its_crates_code() {
    let members = members();
    let mut idle = vec![];
    for member in &members {
        let mut code = String::new();
        read_code(&member.directory, &mut code);
        let words: BTreeSet<_> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let names = member.all_dependencies().map(|(name, _)| name);
        let unnamed = names.filter(|name| !words.contains(name.replace('-', "_").as_str()));
        idle.extend(unnamed.map(|name| format!("{}: {name}", member.name)));
    }
    expect_none("dependencies that the code never names", idle);
}

fn read_code(directory: &Path, code: &mut String) {
    for entry in fs::read_dir(directory).expect("it can be read") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            read_code(&path, code);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            code.push_str(&fs::read_to_string(&path).expect("code is text"));
        }
    }
}

#[test]
fn what_every_crate_has_in_common_is_inherited() {
    let manifest = read_manifest(&root().join("Cargo.toml"));
    let replaces_another = |member: &Member| {
        let mut patches = manifest
            .get("patch")
            .and_then(Value::as_table)
            .into_iter()
            .flatten();
        patches.any(|(_, crates)| crates.get(&member.name).is_some())
    };
    let members = members();
    let mut wrong = vec![];
    for member in &members {
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            let inherited = member.manifest["package"]
                .get(key)
                .and_then(|value| value.get("workspace"));
            // What stands in for a foreign crate has that one's version.
            let has_foreign_version = key == "version" && replaces_another(member);
            if inherited.is_none() && !has_foreign_version {
                wrong.push(format!("{}: {key}", member.name));
            }
        }
        let lints = member.manifest.get("lints");
        let inherits_lints = lints.is_some_and(|lints| lints.get("workspace").is_some());
        // Cargo cannot inherit lints in part, and this one crate needs `unsafe`.
        if !inherits_lints && member.name != "container" {
            wrong.push(format!("{}: lints", member.name));
        }
    }
    expect_none("`key.workspace = true` is missing", wrong);
}

/// Whether `text` has `path` as the beginning of an absolute path: not inside a longer one.
fn has_absolute(text: &str, path: &str) -> bool {
    text.match_indices(path).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-*/}".contains(c))
    })
}

#[test]
fn no_file_knows_where_it_was_written() {
    let here = format!("{}/", root().display());
    // The pieces keep this file from finding itself.
    let homes = [
        concat!("/wo", "rk/"),
        concat!("/Us", "ers/"),
        concat!("/ro", "ot/."),
    ];
    let registries = [
        concat!("deb.", "debian.org"),
        concat!("security.", "debian.org"),
        concat!("crates", ".io"),
        concat!("registry.", "npmjs"),
        concat!("pypi", ".org"),
        concat!("proxy.", "golang.org"),
        concat!("ruby", "gems.org"),
    ];
    let mut findings = vec![];
    for path in tracked_files() {
        // Cargo writes the registry's address into its lock files.
        if path.file_name().is_some_and(|name| name == "Cargo.lock") {
            continue;
        }
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue;
        };
        for (index, line) in text.lines().enumerate() {
            let names_home = has_absolute(line, &here) || homes.iter().any(|home| has_absolute(line, home));
            // Apps live in /home/app.
            let names_user = has_absolute(&line.replace("/home/app", ""), concat!("/ho", "me/"));
            let names_registry = registries.iter().any(|registry| line.contains(registry));
            if names_home || names_user || names_registry {
                findings.push(format!("{}:{}: {}", path.display(), index + 1, line.trim()));
            }
        }
    }
    expect_none(
        "paths of one machine, or addresses of package registries",
        findings,
    );
}

fn tracked_files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output()
        .expect("git is there, as it is for everyone who changes this");
    assert!(
        output.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let names = String::from_utf8(output.stdout).expect("names of files are UTF-8");
    names.split_terminator('\0').map(PathBuf::from).collect()
}

#[test]
fn only_permissive_licences_are_linked() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        // Crates for other systems are in the lock file, but neither linked nor necessarily at hand.
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .expect("cargo runs this test");
    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    assert!(
        packages.len() > 100,
        "cargo names {} packages, too few to be all",
        packages.len()
    );
    let refused = packages.iter().filter(|package| {
        // Its manifest names a file instead of a licence; the file is the MIT licence.
        let is_read_by_a_person = package["name"] == "rust-criu";
        !is_read_by_a_person && !is_permitted(package["license"].as_str().unwrap_or(""))
    });
    expect_none(
        "licences that deny.toml does not allow",
        refused.map(|package| {
            format!(
                "{} {}: {}",
                package["name"], package["version"], package["license"]
            )
        }),
    );
}

/// Whether an SPDX expression leaves a choice that is allowed. `/` is an old way to write OR.
fn is_permitted(expression: &str) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let is_allowed = any_of(&mut words);
    is_allowed && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>) -> bool {
    let mut is_allowed = all_of(words);
    while words.next_if_eq(&"OR").is_some() {
        is_allowed |= all_of(words);
    }
    is_allowed
}

fn all_of(words: &mut Words<'_>) -> bool {
    let mut is_allowed = one(words);
    while words.next_if_eq(&"AND").is_some() {
        is_allowed &= one(words);
    }
    is_allowed
}

fn one(words: &mut Words<'_>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let is_allowed = any_of(words);
        return words.next() == Some(")") && is_allowed;
    }
    // `+` is "or any later version".
    let licence = words.next().map(|word| word.strip_suffix('+').unwrap_or(word));
    let is_allowed = licence.is_some_and(|licence| LICENCES.contains(&licence));
    // An exception only gives more than the licence does.
    if words.next_if_eq(&"WITH").is_some() {
        words.next();
    }
    is_allowed
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    for (expression, expected) in [
        ("MIT", true),
        ("MIT OR GPL-3.0", true),
        ("GPL-3.0-or-later", false),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("MIT OR Apache-2.0 AND AGPL-3.0", true),
        ("(MIT OR Apache-2.0) AND AGPL-3.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("MIT/Apache-2.0", true),
        ("MPL-2.0+", true),
        ("BUSL-1.1", false),
        ("", false),
        ("(MIT", false),
    ] {
        assert_eq!(is_permitted(expression), expected, "{expression:?}");
    }
}

#[test]
fn the_licences_are_those_of_deny_toml() {
    let deny = read_manifest(&root().join("deny.toml"));
    let allowed = deny["licenses"]["allow"].as_array().expect("a list");
    let allowed: Vec<_> = allowed
        .iter()
        .map(|licence| licence.as_str().expect("an SPDX id"))
        .collect();
    assert_eq!(allowed, LICENCES);
}
