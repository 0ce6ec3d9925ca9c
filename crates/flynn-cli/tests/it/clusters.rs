//! Adding, listing and removing clusters, and what git is told of them.

use std::{io::Write, os::unix::fs::PermissionsExt, process::Stdio};

use crate::{
    bench::Bench,
    fake::{Fake, KEY},
};

/// What a transcript says without what differs from run to run.
fn stable(text: &str, fake: &Fake, bench: &Bench) -> String {
    text.replace(&format!(":{}", fake.address.port()), ":PORT")
        .replace(&fake.pin, "PIN")
        .replace(bench.home().to_str().unwrap(), "HOME")
        .replace(env!("CARGO_BIN_EXE_flynn"), "FLYNN")
}

#[test]
fn a_cluster_is_added_by_its_pin_and_git_can_push_to_it() {
    let fake = Fake::start_tls();
    let bench = Bench::empty();
    let domain = format!("flynn.localhost:{}", fake.address.port());
    let add = format!("cluster add -p {} one {domain} {KEY}", fake.pin);
    let mut text = bench.transcript(&[
        &add,
        &add,
        &add.replace("add", "add -f"),
        &add.replace(" one ", " two "),
        "cluster",
        "cluster default",
        "cluster default two",
        "cluster",
        "cluster --json",
        "apps",
        "-c one apps",
    ]);
    text.push_str(&format!("$ cat flynnrc\n{}$ cat gitconfig\n", bench.config()));
    text.push_str(&std::fs::read_to_string(bench.home().join("gitconfig")).unwrap());
    insta::assert_snapshot!(stable(&text, &fake, &bench));
    let mode = std::fs::metadata(bench.home().join("flynnrc"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let ca_cert = std::fs::read_to_string(bench.home().join(".flynn/ca-certs/one.pem")).unwrap();
    assert!(ca_cert.starts_with("-----BEGIN CERTIFICATE-----"));

    // Git itself asks the helper.
    let mut child = bench
        .command("git")
        .args(["credential", "fill"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .env("GIT_TERMINAL_PROMPT", "0")
        .spawn()
        .unwrap();
    write!(
        child.stdin.take().unwrap(),
        "protocol=https\nhost=git.{domain}\n\n"
    )
    .unwrap();
    let answer = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(answer.contains(&format!("password={KEY}\n")), "{answer}");
}

#[test]
fn a_removed_cluster_leaves_nothing_behind() {
    let fake = Fake::start_tls();
    let bench = Bench::empty();
    let domain = format!("flynn.localhost:{}", fake.address.port());
    let add = format!("cluster add -p {} one {domain} {KEY}", fake.pin);
    let text = bench.transcript(&[
        &add,
        "cluster remove one",
        "cluster",
        "cluster default",
        "cluster remove one",
        "apps",
    ]);
    insta::assert_snapshot!(stable(&text, &fake, &bench));
    assert_eq!(bench.config().trim(), "");
    assert_eq!(
        std::fs::read_to_string(bench.home().join("gitconfig"))
            .unwrap()
            .trim(),
        ""
    );
    assert!(!bench.home().join(".flynn/ca-certs/one.pem").exists());
}

#[test]
fn what_the_clusters_authority_signed_later_is_as_good_as_what_was_pinned() {
    let (fake, foreign) = (Fake::start_tls(), Fake::start_tls());
    let bench = Bench::empty();
    for (name, fake) in [("one", &fake), ("two", &foreign)] {
        let domain = format!("flynn.localhost:{}", fake.address.port());
        bench.transcript(&[&format!("cluster add -p {} {name} {domain} {KEY}", fake.pin)]);
    }
    let config = bench.config();
    let kept = bench.home().join(".flynn/ca-certs/one.pem");
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
    let authority = read(&kept);
    let other_pin = "KGCENkp53YF5OvOKkZIry71+czFRkSw2ZdMszZ/0ljs=";
    bench.write_config(&config.replace(&fake.pin, other_pin));
    assert_eq!(
        bench.transcript(&["-c one apps"]),
        "$ flynn -c one apps\nID  NAME\n"
    );
    std::fs::copy(bench.home().join(".flynn/ca-certs/two.pem"), &kept).unwrap();
    let refused = bench.transcript(&["-c one apps"]);
    assert!(refused.contains("certificate"), "{refused}");

    // Old enough to be asked for again.
    bench.write_config(&config);
    let days = std::time::Duration::from_secs(24 * 3600) * 40;
    let file = std::fs::File::options().write(true).open(&kept).unwrap();
    file.set_modified(std::time::SystemTime::now() - days).unwrap();
    drop(file);
    bench.transcript(&["-c one apps"]);
    assert_eq!(read(&kept), authority);
}

#[test]
fn a_cluster_that_is_not_what_it_should_be_is_not_added() {
    let fake = Fake::start_tls();
    let bench = Bench::empty();
    let domain = format!("flynn.localhost:{}", fake.address.port());
    let other_pin = "KGCENkp53YF5OvOKkZIry71+czFRkSw2ZdMszZ/0ljs=";
    let pin = &fake.pin;
    let text = bench.transcript(&[
        &format!("cluster add -p {other_pin} one {domain} {KEY}"),
        &format!("cluster add -p nonsense one {domain} {KEY}"),
        &format!("cluster add -p {pin} one {domain} wrongkey"),
        &format!("cluster add -p {pin} one flynn.localhost:1 {KEY}"),
        &format!("cluster add -p {pin} ../one {domain} {KEY}"),
        &format!("cluster add -p {pin} one https://x {KEY}"),
    ]);
    insta::assert_snapshot!(stable(&text, &fake, &bench));
    assert!(!bench.home().join("flynnrc").exists());
    assert!(!bench.home().join("gitconfig").exists());
}

#[test]
fn a_configuration_that_cannot_be_read_is_not_touched() {
    let fake = Fake::start();
    let bench = Bench::empty();
    bench.write_config("default = \"x\"\n[[cluster]\n");
    let text = bench.transcript(&["apps", "cluster default x"]);
    insta::assert_snapshot!(text.replace(bench.home().to_str().unwrap(), "HOME"));
    assert_eq!(bench.config(), "default = \"x\"\n[[cluster]\n");
    drop(fake);
}

#[test]
fn a_key_that_has_changed_is_said_to_have() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    bench.write_config(&bench.config().replace(KEY, "old"));
    let text = bench.transcript(&["apps"]);
    insta::assert_snapshot!(text.replace(&format!(":{}", fake.address.port()), ":PORT"));
}

#[test]
fn a_cluster_that_is_away_is_said_to_be() {
    let bench = Bench::empty();
    // Nobody listens on port 1.
    bench.write_config("[[cluster]]\nName = \"x\"\nKey = \"k\"\nControllerURL = \"http://127.0.0.1:1\"\n");
    insta::assert_snapshot!(bench.transcript(&["apps"]));
}
