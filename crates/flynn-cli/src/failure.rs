//! Why a command failed, in its user's words, and what can be done about it.

use api::{ClientError, Code};

pub type Result<T> = std::result::Result<T, Failure>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    /// Empty where there is nothing to advise.
    pub hint: String,
    /// Something that the command named does not exist; the app itself may be what is missing.
    pub is_not_found: bool,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Failure {
        Failure {
            message: message.into(),
            hint: String::new(),
            is_not_found: false,
        }
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = hint.into();
        self
    }

    /// As it is printed, with its last newline.
    pub fn render(&self) -> String {
        let mut text = format!("error: {}\n", self.message.trim_end());
        for line in self.hint.lines() {
            text.push_str(&format!("hint: {line}\n"));
        }
        text
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let is_not_found = error.is_not_found();
        let (message, hint) = match &error {
            ClientError::Api(api) => (error.to_string(), api_hint(api)),
            ClientError::Unauthorized { .. } => (
                error.to_string(),
                "the cluster has another key now: `flynn cluster add -f` replaces the one in the configuration".into(),
            ),
            ClientError::Unreachable { url, reason } if reason.contains("not the pinned one") => (
                format!("the certificate of {url} is not the one that the TLS pin names"),
                "if the cluster was set up anew, add it again with its new pin (`flynn cluster add -f -p …`); \
                 if it was not, somebody may be between you and it"
                    .into(),
            ),
            ClientError::Unreachable { url, reason } if reason.contains("UnknownIssuer") => (
                format!("the certificate of {url} is signed by nobody whom this machine trusts"),
                "a cluster with an authority of its own is added with its pin: `flynn cluster add -p PIN …`".into(),
            ),
            ClientError::Unreachable { .. } => (
                error.to_string(),
                "check that the cluster runs and that its name leads there; `flynn cluster` shows the addresses".into(),
            ),
            ClientError::Broken { .. } => (error.to_string(), "try again; what was asked may have happened".into()),
            _ => (error.to_string(), String::new()),
        };
        Failure {
            message,
            hint,
            is_not_found,
        }
    }
}

fn api_hint(error: &api::Error) -> String {
    if !error.hint.is_empty() {
        return error.hint.clone();
    }
    match error.code {
        Code::Unauthorized => "the cluster has another key now: `flynn cluster add -f` replaces it".into(),
        Code::ServiceUnavailable | Code::Ratelimited => "try again in a moment".into(),
        _ if error.message.contains("already one in progress") => {
            "`flynn deployment` shows it; try again when it has finished".into()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_error_keeps_its_code_and_text_and_gets_its_hint() {
        let error =
            api::Error::new(Code::ObjectExists, r#"application "x" already exists"#).with_hint("take y");
        assert_eq!(
            Failure::from(ClientError::Api(error)).render(),
            "error: object_exists: application \"x\" already exists\nhint: take y\n"
        );
    }
}
