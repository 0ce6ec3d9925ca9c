//! `flynn-host log-sink list`: where a host's logs are sent, and how far it is.

use anyhow::{Result, bail};
use api::sinks::HostSink;
use types::Host;

use crate::{
    config::Config,
    format::{ago, table},
    host_client,
};

pub async fn list(config: &Config, host: Option<&str>, json: bool) -> Result<()> {
    let client = match host {
        Some(id) if id != config.host_id()?.as_str() => {
            let hosts: Vec<Host> = host_client::controller(config)?.client().get("/hosts").await?;
            let Some(found) = hosts.iter().find(|host| host.id.as_str() == id) else {
                bail!("the cluster has no host {id}\nhint: `flynn-host list` lists the ids of hosts");
            };
            host_client::host_of(config, found)?
        }
        _ => host_client::host(config)?,
    };
    let sinks: Vec<HostSink> = client.get("/sinks").await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&sinks)?);
        return Ok(());
    }
    print!("{}", table(&rows(&sinks, daemon::now())));
    Ok(())
}

/// The original's columns, and how the host gets on.
fn rows(sinks: &[HostSink], now: types::Timestamp) -> Vec<Vec<String>> {
    let head = [
        "ID",
        "KIND",
        "CONFIG",
        "HOST MANAGED",
        "CONNECTED",
        "BEHIND",
        "LOST LINES",
        "LAST ERROR",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for HostSink { sink, status } in sinks {
        let config = sink
            .config
            .as_ref()
            .map(|config| serde_json::to_string(config).expect("it serialises"));
        let error = match (status.last_error.as_str(), status.last_error_at) {
            ("", _) => String::new(),
            (error, Some(at)) => format!("{error} ({})", ago(at, now)),
            (error, None) => error.to_owned(),
        };
        rows.push(vec![
            sink.id.clone(),
            sink.kind.clone(),
            config.unwrap_or_default(),
            sink.host_managed.to_string(),
            status.connected.to_string(),
            bytes(status.behind_bytes),
            status.lines_lost.to_string(),
            error,
        ]);
    }
    rows
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{} kB", count / 1_000),
        _ => format!("{} MB", count / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use api::sinks::{SinkStatus, SinkView};
    use types::{SyslogSinkConfig, Timestamp};

    use super::*;

    #[test]
    fn a_sink_that_does_not_get_on_says_why() {
        let sink = HostSink {
            sink: SinkView {
                id: "14ca7c62".into(),
                kind: "syslog".into(),
                config: Some(SyslogSinkConfig {
                    url: "syslog://x".into(),
                    ..Default::default()
                }),
                ..Default::default()
            },
            status: SinkStatus {
                behind_bytes: 123_456,
                lines_lost: 7,
                last_error: "x: no such name".into(),
                last_error_at: Some(Timestamp::EPOCH),
                ..Default::default()
            },
        };
        let text = table(&rows(&[sink], Timestamp::from_micros(5_000_000)));
        assert_eq!(
            text,
            "ID        KIND    CONFIG                HOST MANAGED  CONNECTED  BEHIND  LOST LINES  LAST ERROR\n\
             14ca7c62  syslog  {\"url\":\"syslog://x\"}  false         false      123 kB  7           x: no such name (5 seconds ago)\n"
        );
    }
}
