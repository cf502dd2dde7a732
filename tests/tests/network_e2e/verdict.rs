//! What became of each test, beside what was expected of it.

use std::fmt::{self, Display, Formatter};

use crate::{
    e2e::{Outcome, Spec, State},
    unfit::{End, Unfit},
};

/// A row for each test, and for each step before or after the tests that failed.
pub(crate) struct Verdict<'a>(Vec<Row<'a>>);

pub(crate) struct Row<'a> {
    spec: &'a Spec,
    unfit: Option<&'a Unfit>,
}

impl<'a> Verdict<'a> {
    pub(crate) fn of(outcome: &'a Outcome, unfit: &'a [Unfit]) -> Self {
        let told = outcome.specs.iter().filter(|spec| spec.is_test || !passed(spec));
        let mut rows: Vec<_> = told
            .map(|spec| Row { spec, unfit: unfit.iter().find(|unfit| unfit.name == spec.name) })
            .collect();
        rows.sort_by_key(|row| &row.spec.name);
        Self(rows)
    }

    pub(crate) fn tests(&self) -> usize {
        self.0.iter().filter(|row| row.spec.is_test).count()
    }

    /// What did not end as it was expected to.
    pub(crate) fn surprises(&self) -> impl Iterator<Item = &Row<'a>> {
        self.0.iter().filter(|row| row.is_surprise())
    }

    /// Names of the list that no test has.
    pub(crate) fn missing(&self, unfit: &'a [Unfit]) -> Vec<&'static str> {
        let is_met = |name| self.0.iter().any(|row| row.spec.name == name);
        unfit.iter().map(|unfit| unfit.name).filter(|name| !is_met(*name)).collect()
    }

    fn count(&self, state: &str) -> usize {
        self.0.iter().filter(|row| row.state() == state).count()
    }
}

fn passed(spec: &Spec) -> bool {
    spec.state == State::Passed
}

impl Row<'_> {
    fn state(&self) -> &'static str {
        match self.spec.state {
            State::Passed => "passed",
            State::Skipped(_) => "skipped",
            State::Failed(_) => "FAILED",
        }
    }

    fn is_surprise(&self) -> bool {
        match (&self.spec.state, self.unfit.map(|unfit| unfit.ends)) {
            (State::Passed, None)
            | (State::Failed(_), Some(End::Failed))
            | (State::Skipped(_), Some(End::Skipped)) => false,
            (State::Passed | State::Failed(_) | State::Skipped(_), _) => true,
        }
    }
}

impl Display for Row<'_> {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let (state, seconds) = (self.state(), self.spec.took.as_secs_f32());
        write!(to, "{state:7} {seconds:6.1} s  {}", self.spec.name)?;
        match (self.unfit, self.is_surprise()) {
            (Some(unfit), false) => write!(to, "\n{:18}as expected: {}", "", unfit.why),
            (Some(unfit), true) => write!(
                to,
                "\n{:18}NOT AS EXPECTED: take it out of unfit.rs if this is so from now on; there, \
                 {}",
                "", unfit.why
            ),
            (None, true) => write!(to, "\n{:18}NOT AS EXPECTED", ""),
            (None, false) => Ok(()),
        }
    }
}

/// As a table: a line for each test, one more where there is something to say about it, and the sums.
impl Display for Verdict<'_> {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|row| writeln!(to, "{row}"))?;
        let [passed, failed, skipped] = ["passed", "FAILED", "skipped"].map(|it| self.count(it));
        write!(
            to,
            "{} tests: {passed} passed, {failed} failed, {skipped} skipped; {} not as expected",
            self.tests(),
            self.surprises().count(),
        )
    }
}

#[test]
fn only_what_was_expected_is_no_surprise() {
    use std::time::Duration;

    let unfit = |name, ends| Unfit { name, ends, why: "of old tools", passes_elsewhere: false };
    let list = [
        unfit("fails", End::Failed),
        unfit("is left out", End::Skipped),
        unfit("was mended", End::Failed),
        unfit("is nobody's", End::Failed),
    ];
    let spec = |name: &str, is_test, state| Spec {
        name: name.into(),
        is_test,
        state,
        took: Duration::from_millis(1500),
    };
    let specs = vec![
        spec("passes", true, State::Passed),
        spec("breaks", true, State::Failed("by us".into())),
        spec("fails", true, State::Failed("by tools".into())),
        spec("is left out", true, State::Skipped("too few".into())),
        spec("would rather not", true, State::Skipped("why".into())),
        spec("was mended", true, State::Passed),
        spec("before all", false, State::Passed),
        spec("after all", false, State::Failed("late".into())),
    ];
    let outcome = Outcome { specs, log: "log".into() };
    let verdict = Verdict::of(&outcome, &list);
    let surprises: Vec<_> = verdict.surprises().map(|row| row.spec.name.as_str()).collect();
    assert_eq!(surprises, ["after all", "breaks", "was mended", "would rather not"]);
    assert_eq!(verdict.tests(), 6);
    assert_eq!(verdict.missing(&list), ["is nobody's"]);
    let told = verdict.to_string();
    assert!(
        told.contains("FAILED     1.5 s  fails\n                  as expected: of old tools\n")
    );
    assert!(told.ends_with("6 tests: 2 passed, 3 failed, 2 skipped; 4 not as expected"), "{told}");
}
