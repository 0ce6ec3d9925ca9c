//! Names for apps whose users gave none: three words, easy to say and to tell apart.

const FIRST: &[&str] = &[
    "amber", "brave", "calm", "clever", "crisp", "eager", "fair", "fancy", "fresh", "gentle", "golden",
    "happy", "hidden", "jolly", "keen", "kind", "lively", "lucky", "mellow", "merry", "misty", "noble",
    "plain", "proud", "quick", "quiet", "rapid", "shiny", "silent", "smooth", "snowy", "sunny", "swift",
    "tidy", "vivid", "warm",
];
const SECOND: &[&str] = &[
    "acorn", "badger", "beacon", "birch", "breeze", "brook", "canyon", "cedar", "cloud", "comet", "coral",
    "crane", "delta", "ember", "falcon", "fern", "finch", "fjord", "forest", "garden", "glacier", "harbor",
    "heron", "island", "lagoon", "lantern", "maple", "meadow", "orchid", "otter", "pebble", "pine",
    "prairie", "river", "robin", "tulip",
];

/// A name such as `swift-otter-4821`, from random bytes.
pub fn random_name(random: [u8; 4]) -> String {
    let first = FIRST[random[0] as usize % FIRST.len()];
    let second = SECOND[random[1] as usize % SECOND.len()];
    format!(
        "{first}-{second}-{:04}",
        u16::from_be_bytes([random[2], random[3]]) % 10_000
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_random_name_is_a_valid_name() {
        for byte in 0..=255u8 {
            let name = super::random_name([byte, byte.wrapping_mul(7), byte, !byte]);
            assert_eq!(types::check_app_name(&name), Ok(()), "{name}");
        }
    }
}
