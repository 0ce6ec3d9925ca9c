//! What git's hook passes on about a push.

use builder::{Decision, decide, parse_ref_lines};

pub fn ref_lines(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(updates) = parse_ref_lines(&text) else {
        return;
    };
    let written: String = updates
        .iter()
        .map(|update| {
            format!(
                "{} {} {}\n",
                update.old.as_str(),
                update.new.as_str(),
                update.name
            )
        })
        .collect();
    assert_eq!(parse_ref_lines(&written).as_ref(), Ok(&updates));
    for update in &updates {
        // Names go into messages on somebody's terminal.
        assert!(!update.name.contains(char::is_control), "{:?}", update.name);
    }
    if let Decision::Deploy { branch, commit, .. } = decide(&updates) {
        let name = format!("refs/heads/{branch}");
        assert!(
            updates
                .iter()
                .any(|update| update.name == name && update.new == commit)
        );
        assert!(
            commit.as_str().bytes().any(|digit| digit != b'0'),
            "a removed branch cannot be deployed"
        );
        assert_eq!(commit.short().len(), 7);
    }
}
