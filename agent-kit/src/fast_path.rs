//! Whether packets pass bridge and IP stack by, as both agents are told by `--fast-path`.

use clap::ValueEnum;
use serde::Serialize;

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FastPath {
    /// Where nothing on the node has a say.
    #[default]
    Auto,
    On,
    Off,
}

impl FastPath {
    /// Whether they do where this may stand in the way, and why, in words.
    #[must_use]
    pub fn judge(self, obstacle: Option<&str>) -> (bool, String) {
        match (self, obstacle) {
            (Self::Off, _) => (false, "off, as told".into()),
            (Self::On, _) => (true, "on, as told".into()),
            (Self::Auto, Some(obstacle)) => (false, format!("off: {obstacle}")),
            (Self::Auto, None) => (true, "on, nothing on this node filters or translates".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_heeds_what_is_in_the_way() {
        let judged = |wanted: FastPath, obstacle| wanted.judge(obstacle).0;
        assert!(judged(FastPath::Auto, None) && !judged(FastPath::Auto, Some("a rule")));
        assert!(judged(FastPath::On, Some("a rule")) && !judged(FastPath::Off, None));
        assert_eq!(FastPath::Auto.judge(Some("a rule")).1, "off: a rule");
    }
}
