//! What a push asks for: the hook's ref lines as values, and whether they mean a deployment.
//!
//! Pure. A push is taken or refused as a whole, as git's pre-receive hook has it.

/// Branches whose pushes are deployed; the first wins where both are pushed.
const DEPLOYED: [&str; 2] = ["main", "master"];

const LINES_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 1024;

/// The name of an object, in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectId(String);

impl ObjectId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// All zeros: nothing was there before, or nothing will be after.
    fn is_none(&self) -> bool {
        self.0.bytes().all(|digit| digit == b'0')
    }

    pub fn short(&self) -> &str {
        &self.0[..7]
    }

    fn parse(text: &str) -> Option<ObjectId> {
        let is_hex = text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        (matches!(text.len(), 40 | 64) && is_hex).then(|| ObjectId(text.to_owned()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefUpdate {
    pub old: ObjectId,
    pub new: ObjectId,
    /// Whole: `refs/heads/main`.
    pub name: String,
}

impl RefUpdate {
    /// What the pusher takes the ref for, if it takes it to be there.
    pub fn before(&self) -> Option<&str> {
        Some(self.old.as_str()).filter(|_| !self.old.is_none())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefLineError {
    #[error("line {0} is not of the form OLD NEW REF")]
    Malformed(usize),
    #[error("a push may change at most {LINES_MAX} refs")]
    TooMany,
}

/// Reads what git gives to a pre-receive hook: lines of `OLD NEW REF`.
pub fn parse_ref_lines(input: &str) -> Result<Vec<RefUpdate>, RefLineError> {
    let mut updates = Vec::new();
    for (index, line) in input.split_terminator('\n').enumerate() {
        if index == LINES_MAX {
            return Err(RefLineError::TooMany);
        }
        updates.push(parse_ref_line(line).ok_or(RefLineError::Malformed(index + 1))?);
    }
    Ok(updates)
}

fn parse_ref_line(line: &str) -> Option<RefUpdate> {
    let mut words = line.split(' ');
    let (old, new, name) = (words.next()?, words.next()?, words.next()?);
    let is_name =
        name.starts_with("refs/") && name.len() <= NAME_BYTES_MAX && !name.contains(char::is_control);
    if words.next().is_some() || !is_name {
        return None;
    }
    Some(RefUpdate {
        old: ObjectId::parse(old)?,
        new: ObjectId::parse(new)?,
        name: name.to_owned(),
    })
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Deploy {
        branch: String,
        commit: ObjectId,
        notes: Vec<String>,
    },
    /// Only other branches or tags are removed: nothing to build, nothing to refuse.
    OnlyRemovals,
    Refuse(Vec<String>),
}

/// Whether these updates mean a deployment, and of what.
pub fn decide(updates: &[RefUpdate]) -> Decision {
    for update in updates {
        let Some(branch) = update.name.strip_prefix("refs/heads/") else {
            continue;
        };
        if DEPLOYED.contains(&branch) && update.new.is_none() {
            return Decision::Refuse(vec![
                format!("The branch {branch} is what is deployed; it cannot be deleted."),
                "flynn delete removes the app.".into(),
            ]);
        }
        // git keeps branches as paths: with main/x there could be no main.
        if let Some(taken) = DEPLOYED
            .iter()
            .find(|name| branch.starts_with(&format!("{name}/")))
        {
            return Decision::Refuse(vec![format!(
                "A branch {branch} would be in the way of the branch {taken}."
            )]);
        }
    }
    let pushed = |branch: &str| {
        updates
            .iter()
            .find(|update| update.name == format!("refs/heads/{branch}"))
    };
    let Some((branch, update)) = DEPLOYED
        .iter()
        .find_map(|branch| Some((*branch, pushed(branch)?)))
    else {
        return match updates.iter().find(|update| !update.new.is_none()) {
            Some(update) => Decision::Refuse(not_deployed(&update.name)),
            None => Decision::OnlyRemovals,
        };
    };
    let others = updates
        .iter()
        .filter(|other| other.name != update.name && !other.new.is_none());
    let notes = match others.count() {
        0 => vec![],
        _ => vec![format!(
            "Deploying {branch}; what else was pushed is kept, and not deployed."
        )],
    };
    Decision::Deploy {
        branch: branch.to_owned(),
        commit: update.new.clone(),
        notes,
    }
}

fn not_deployed(name: &str) -> Vec<String> {
    let source = match (name.strip_prefix("refs/heads/"), name.strip_prefix("refs/tags/")) {
        (Some(branch), _) => branch.to_owned(),
        (_, Some(tag)) => format!("{tag}^{{}}"),
        _ => name.to_owned(),
    };
    let source = if source.contains('^') {
        format!("'{source}:refs/heads/main'")
    } else {
        format!("{source}:main")
    };
    vec![
        "Only pushes to main or master are deployed.".into(),
        format!("To deploy this: git push flynn {source}"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(updates: &[(char, char, &str)]) -> String {
        let id = |digit: char| digit.to_string().repeat(40);
        updates
            .iter()
            .map(|(old, new, name)| format!("{} {} {name}\n", id(*old), id(*new)))
            .collect()
    }

    fn check(updates: &[(char, char, &str)], expected: &str) {
        let told = match decide(&parse_ref_lines(&lines(updates)).unwrap()) {
            Decision::Deploy {
                branch,
                commit,
                notes,
            } => {
                format!(
                    "deploy {branch} {}{}",
                    commit.short(),
                    if notes.is_empty() { "" } else { " with a note" }
                )
            }
            Decision::OnlyRemovals => "nothing".into(),
            Decision::Refuse(lines) => lines.join(" | "),
        };
        assert_eq!(told, expected, "{updates:?}");
    }

    #[test]
    fn main_and_master_are_deployed_and_main_wins() {
        check(&[('0', '1', "refs/heads/main")], "deploy main 1111111");
        check(&[('1', '2', "refs/heads/master")], "deploy master 2222222");
        check(
            &[('0', '1', "refs/heads/master"), ('0', '2', "refs/heads/main")],
            "deploy main 2222222 with a note",
        );
        check(
            &[('0', '1', "refs/tags/v1"), ('0', '2', "refs/heads/main")],
            "deploy main 2222222 with a note",
        );
        check(
            &[('1', '0', "refs/heads/old"), ('0', '2', "refs/heads/main")],
            "deploy main 2222222",
        );
    }

    #[test]
    fn other_refs_alone_are_refused_with_what_to_type() {
        let only = "Only pushes to main or master are deployed. | To deploy this: git push flynn";
        check(&[('0', '1', "refs/heads/fix/it")], &format!("{only} fix/it:main"));
        check(
            &[('0', '1', "refs/tags/v1")],
            &format!("{only} 'v1^{{}}:refs/heads/main'"),
        );
    }

    #[test]
    fn the_deployed_branch_cannot_be_removed_but_others_can() {
        check(
            &[('1', '0', "refs/heads/main")],
            "The branch main is what is deployed; it cannot be deleted. | flynn delete removes the app.",
        );
        check(&[('1', '0', "refs/heads/old")], "nothing");
        check(
            &[('0', '1', "refs/heads/main/x")],
            "A branch main/x would be in the way of the branch main.",
        );
    }

    #[test]
    fn what_is_no_ref_line_is_refused() {
        let id = "1".repeat(40);
        for bad in [
            "\n".to_owned(),
            format!("{id} {id}\n"),
            format!("{id} {id} main\n"),
            format!("{id} {id} refs/heads/a b\n"),
            format!("{id} {} refs/heads/a\n", "g".repeat(40)),
            format!("{id} {} refs/heads/a\n", "1".repeat(39)),
            format!("{id} {id} refs/{}\n", "x".repeat(2000)),
        ] {
            assert_eq!(parse_ref_lines(&bad), Err(RefLineError::Malformed(1)), "{bad:?}");
        }
        let many = lines(&[('0', '1', "refs/heads/x")]).repeat(LINES_MAX + 1);
        assert_eq!(parse_ref_lines(&many), Err(RefLineError::TooMany));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-f refs/heads\\n\u{0}-\u{ff}]{0,300}") {
            if let Ok(updates) = parse_ref_lines(&text) {
                let _ = decide(&updates);
            }
        }

        #[test]
        fn what_was_written_is_read_again(names in proptest::collection::vec("refs/(heads|tags)/[a-zé.-]{1,40}", 0..20)) {
            let updates: Vec<_> = names.iter().map(|name| ('1', '2', name.as_str())).collect();
            let read = parse_ref_lines(&lines(&updates)).unwrap();
            prop_assert_eq!(read.iter().map(|update| &update.name).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
        }
    }
}
