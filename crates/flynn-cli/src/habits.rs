//! What people type who come from elsewhere: `noun:verb`, and Heroku's names for what `flynn` calls
//! otherwise.
//!
//! Only the first word that is no option is looked at, before the line is understood: a table of
//! words to words, so that what is typed elsewhere in the line is never touched.

use std::ffi::OsString;

/// What is typed, and what it means here. Longer ones stand before their beginnings.
const MEANINGS: &[(&str, &[&str])] = &[
    ("apps:create", &["create"]),
    ("apps:destroy", &["delete"]),
    ("apps:delete", &["delete"]),
    ("apps:info", &["info"]),
    ("config", &["env"]),
    ("config:get", &["env", "get"]),
    ("config:set", &["env", "set"]),
    ("config:unset", &["env", "unset"]),
    ("destroy", &["delete"]),
    ("domains", &["route"]),
    ("domains:add", &["route", "add", "http"]),
    ("domains:remove", &["route", "remove"]),
    ("logs", &["log"]),
    ("ps:exec", &["exec"]),
    ("ps:kill", &["kill"]),
    ("ps:restart", &["restart"]),
    ("ps:scale", &["scale"]),
    ("ps:stop", &["kill"]),
    ("releases", &["release"]),
    ("releases:info", &["release", "show"]),
    ("releases:rollback", &["release", "rollback"]),
    ("rollback", &["release", "rollback"]),
    ("routes", &["route"]),
    ("run:detached", &["run", "--detached"]),
    ("volumes", &["volume"]),
];

/// Options before the command that have a value of their own.
const WITH_VALUE: [&str; 4] = ["-a", "-c", "--app", "--cluster"];

/// Puts a line into `flynn`'s own words; `is_noun` knows the commands.
pub fn in_own_words(mut arguments: Vec<OsString>, is_noun: impl Fn(&str) -> bool) -> Vec<OsString> {
    let mut at = 1;
    while let Some(argument) = arguments.get(at).and_then(|argument| argument.to_str()) {
        if WITH_VALUE.contains(&argument) {
            at += 2;
        } else if argument.starts_with('-') {
            at += 1;
        } else {
            if let Some(words) = words(argument, is_noun) {
                arguments.splice(at..=at, words);
            }
            break;
        }
    }
    arguments
}

fn words(typed: &str, is_noun: impl Fn(&str) -> bool) -> Option<Vec<OsString>> {
    if let Some((_, words)) = MEANINGS.iter().find(|(known, _)| *known == typed) {
        return Some(words.iter().map(OsString::from).collect());
    }
    let (noun, _) = typed.split_once(':')?;
    is_noun(noun).then(|| typed.split(':').map(OsString::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(typed: &str, expected: &str) {
        let arguments = typed.split(' ').map(OsString::from).collect();
        let words = in_own_words(arguments, |noun| {
            ["route", "release", "env", "cluster"].contains(&noun)
        });
        let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(words.join(" "), expected);
    }

    #[test]
    fn a_colon_between_noun_and_verb_is_a_space() {
        check("flynn -a x route:add http a:b", "flynn -a x route add http a:b");
        check("flynn route:add:http a:b", "flynn route add http a:b");
        check("flynn --app=x release:rollback", "flynn --app=x release rollback");
        check(
            "flynn cluster:log-sink:add syslog",
            "flynn cluster log-sink add syslog",
        );
        check("flynn run echo env:set", "flynn run echo env:set");
        check("flynn nosuch:verb", "flynn nosuch:verb");
    }

    #[test]
    fn what_heroku_calls_otherwise_is_known() {
        check("flynn config:set A=b:c", "flynn env set A=b:c");
        check("flynn -a x ps:scale web=2", "flynn -a x scale web=2");
        check("flynn logs -f", "flynn log -f");
        check(
            "flynn domains:add www.example.com",
            "flynn route add http www.example.com",
        );
        check("flynn run:detached ./task", "flynn run --detached ./task");
        check("flynn run config:set", "flynn run config:set");
    }
}
