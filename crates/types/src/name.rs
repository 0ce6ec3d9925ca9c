//! The rules for names that users choose.

/// What is wrong with a name, in the words that the API answers with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {reason}")]
pub struct NameError {
    pub field: &'static str,
    pub reason: String,
}

/// App names are labels of domain names: `^[a-z\d]+(-[a-z\d]+)*$`, at most 100 characters
/// (the original's rule; a DNS label holds 63, so longer names get no route of their own).
pub fn check_app_name(name: &str) -> Result<(), NameError> {
    let field = "name";
    if name.len() > 100 {
        return Err(NameError {
            field,
            reason: "must be at most 100 characters long".into(),
        });
    }
    let ok = !name.is_empty()
        && name.split('-').all(|part| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        });
    if ok {
        Ok(())
    } else {
        Err(NameError {
            field,
            reason: r#"String must match the pattern: "^[a-z\d]+(-[a-z\d]+)*$"."#.into(),
        })
    }
}

/// Process types are what stands before the colon in a Procfile.
pub fn check_process_type(name: &str) -> Result<(), NameError> {
    let ok = !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if ok {
        return Ok(());
    }
    Err(NameError {
        field: "processes",
        reason: format!(
            "has a process type {name:?}; a type has 1 to 63 letters, digits, dashes and underscores"
        ),
    })
}

/// Environment keys may be anything that an environment can hold: not empty, no `=`, no NUL.
pub fn check_env_key(key: &str, value: &str) -> Result<(), NameError> {
    let field = "env";
    if key.is_empty() {
        return Err(NameError {
            field,
            reason: format!("you can't create an env var with an empty key (tried to set \"\"={value:?})"),
        });
    }
    if key.contains(['=', '\0']) || value.contains('\0') {
        return Err(NameError {
            field,
            reason: format!("you can't create the env var {key:?}: keys have no `=` and nothing has a NUL"),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_names_are_domain_labels() {
        for good in ["a", "my-app", "3scale", "a-b-c"] {
            assert_eq!(check_app_name(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "a--b",
            "UPPER",
            "a_b",
            "a.b",
            "é",
            &"a".repeat(101),
        ] {
            assert!(check_app_name(bad).is_err(), "{bad}");
        }
    }
}
