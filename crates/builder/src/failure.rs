//! Why a push did not become a release.

use api::ClientError;

use crate::output::Output;

pub type Result<T> = std::result::Result<T, Failure>;

#[derive(Debug)]
pub enum Failure {
    /// Something that the pusher can do something about, in lines for them. Empty where a build has
    /// said it all.
    Refused(Vec<String>),
    /// The pusher went away.
    Cancelled,
    /// The daemon is stopping.
    Stopping,
    /// Our own trouble.
    Broken(anyhow::Error),
}

impl Failure {
    pub fn refused<T: Into<String>>(lines: impl IntoIterator<Item = T>) -> Failure {
        Failure::Refused(lines.into_iter().map(Into::into).collect())
    }

    /// A failure of the controller: its own words where it has some.
    pub fn of_controller(what: &str, error: ClientError) -> Failure {
        match error {
            ClientError::Api(error) => {
                let mut lines = vec![format!("{what}: {}", error.message)];
                lines.extend(Some(error.hint).filter(|hint| !hint.is_empty()));
                Failure::Refused(lines)
            }
            other => Failure::Broken(anyhow::Error::new(other).context(what.to_owned())),
        }
    }

    pub fn tell(&self, out: &Output) {
        match self {
            Failure::Refused(lines) => lines
                .iter()
                .flat_map(|text| text.lines())
                .for_each(|line| out.warn(line)),
            Failure::Cancelled => {}
            Failure::Stopping => {
                out.warn("The platform is restarting; the build was stopped.");
                out.warn("Push again in a moment.");
            }
            Failure::Broken(error) => {
                out.warn(format!(
                    "The push failed for a reason of the platform's own: {error:#}"
                ));
                out.warn("Pushing again may help; if not, ask those who run it.");
            }
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Broken(error.into())
    }
}
