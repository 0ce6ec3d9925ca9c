//! Making the hosts of a lab one cluster, as an operator would: a token for each, and `flynn-host join`.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};

use super::{
    host,
    layout::{Lab, host_name},
};

/// How long hosts may take to have joined, caught up and become voters.
const TOGETHER_TIMEOUT: Duration = Duration::from_secs(60);
/// Where `flynn` looks in a host, and what it writes there.
const HOME: &str = "home";

/// The arguments with which a host founds the cluster, one in a line. Without its address other hosts' jobs would be
/// out of its reach.
pub fn init_arguments(lab: &Lab, founder: u8) -> String {
    format!("init\n--address\n{}", lab.address(founder))
}

/// The arguments with which a host joins, one in a line. Any host that is on will do.
pub fn join_arguments(lab: &Lab, member: u8) -> Result<String> {
    let token = output(lab, member, &["flynn-host", "token"])?;
    Ok(format!(
        "join\n{}\n--token\n{}",
        lab.address(member),
        token.trim()
    ))
}

/// Waits until all hosts are up and as many of them vote as will.
pub fn wait_until_together(lab: &Lab) -> Result<()> {
    let voters = if lab.hosts < 3 { 1 } else { 3 };
    let mut last = String::new();
    host::wait_until(TOGETHER_TIMEOUT, || {
        last = output(lab, 1, &["flynn-host", "list"]).unwrap_or_else(|error| format!("{error:#}"));
        let rows = || last.lines().skip(1).map(str::trim);
        // What is wrong with one is told behind a comma.
        let is_well = |row: &str| !row.contains(',');
        let peers = rows().filter(|row| row.contains(" peer")).count();
        Ok(rows().count() == usize::from(lab.hosts) && rows().all(is_well) && peers >= voters)
    })
    .with_context(|| format!("the hosts do not come together:\n{last}"))
}

/// Lets `flynn` know the cluster, in every host.
pub fn add_to_cli(lab: &Lab) -> Result<()> {
    let etc = |host: u8| lab.host_directory(host).join("etc");
    daemon::files::create_private_dir(&etc(1).join(HOME))?;
    let command = output(lab, 1, &["flynn-host", "cli-add-command"])?;
    let words: Vec<&str> = command.split_whitespace().collect();
    output(lab, 1, &words)?;
    for host in lab.all_hosts().skip(1) {
        copy(&etc(1).join(HOME), &etc(host).join(HOME))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    daemon::files::create_private_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// What a command in a host prints.
fn output(lab: &Lab, host: u8, words: &[&str]) -> Result<String> {
    let output = host::command(lab, host)?
        .args(words)
        .stdin(std::process::Stdio::null())
        .output()
        .context("cannot run nsenter")?;
    if !output.status.success() {
        bail!(
            "`{}` in {} failed: {}",
            words.join(" "),
            host_name(host),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
