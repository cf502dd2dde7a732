//! What a person should see to, by the part of an agent that found it.

use std::{collections::BTreeMap, fmt::Display};

use tracing::{info, warn};

#[derive(Debug)]
pub struct Problems<P> {
    by_origin: BTreeMap<&'static str, Vec<P>>,
}

impl<P> Default for Problems<P> {
    fn default() -> Self {
        Self { by_origin: BTreeMap::new() }
    }
}

impl<P: Clone + PartialEq + Display> Problems<P> {
    /// Replaces what one part has to complain about; logs what is new, and what is over.
    pub fn set(&mut self, origin: &'static str, problems: Vec<P>) {
        let before = self.by_origin.remove(origin).unwrap_or_default();
        for problem in problems.iter().filter(|problem| !before.contains(problem)) {
            warn!("{problem}");
        }
        for problem in before.iter().filter(|problem| !problems.contains(problem)) {
            info!("no longer: {problem}");
        }
        self.by_origin.insert(origin, problems);
    }

    /// All there are now.
    pub fn all(&self) -> Vec<P> {
        self.by_origin.values().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_part_finds_replaces_only_its_own() {
        let mut problems = Problems::default();
        problems.set("b", vec!["three"]);
        problems.set("a", vec!["one", "two"]);
        assert_eq!(problems.all(), ["one", "two", "three"]);
        problems.set("a", vec!["two"]);
        problems.set("b", Vec::new());
        assert_eq!(problems.all(), ["two"]);
    }
}
