use serde::{Deserialize, Serialize};

/// What operators have chosen for the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct Settings {
    /// How many hosts keep each layer, repository and image.
    pub copies: u32,
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
        }
    }
}
