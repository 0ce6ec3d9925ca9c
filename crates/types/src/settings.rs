use serde::{Deserialize, Serialize};

/// What operators have chosen for the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct Settings {
    /// How many hosts keep each layer, repository and image.
    pub copies: u32,
    /// Where all of that is also kept, if anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<Bucket>,
}

/// A bucket of an object store that speaks S3, and who may use it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Bucket {
    /// `https://HOST[:PORT]`, of the object store.
    pub endpoint: String,
    pub name: String,
    /// What keys begin with, without slashes at its ends; may be empty.
    #[serde(default)]
    pub prefix: String,
    pub region: String,
    pub access_key_id: String,
    pub secret_access_key: String,
    /// Whether the name comes behind the endpoint's host and not before it.
    pub path_style: bool,
}

impl Bucket {
    /// `s3://NAME/PREFIX`.
    pub fn url(&self) -> String {
        match &*self.prefix {
            "" => format!("s3://{}", self.name),
            prefix => format!("s3://{}/{prefix}", self.name),
        }
    }
}

/// Without the secret, which no log is to have.
impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bucket")
            .field("url", &self.url())
            .field("endpoint", &self.endpoint)
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// More than one, as hosts die; and no more than a cluster of three has to spare.
    pub const COPIES_DEFAULT: u32 = 2;
    /// A larger number is a mistake: there are no clusters of so many hosts in one place.
    pub const COPIES_MAX: u32 = 100;
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            copies: Settings::COPIES_DEFAULT,
            bucket: None,
        }
    }
}
