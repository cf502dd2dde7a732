//! One line of a report: a figure with its interval, its goal, and what the program that the
//! agent stands in for came to.

use serde::Serialize;

use super::statistics::{Ratio, quantile};

/// Where a figure must get to.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// The interval holds 1.
    Same,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    Ratio,
    Seconds,
    Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Holds,
    Missed,
}

/// What kube-proxy 1.35 came to, or flanneld with its rules.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "measured")]
enum Compared {
    /// At another time on this kind of machine.
    Elsewhere { text: &'static str },
    /// In this run; the fields are those of [`Row`].
    InThisRun { value: f64, low: f64, high: f64, rounds: usize },
}

/// What a figure belongs to, and the other program's beside it.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum Scope {
    Service {
        #[serde(skip_serializing_if = "Option::is_none")]
        services: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        socket_lb: Option<&'static str>,
        /// In nftables mode.
        kube_proxy: Option<Compared>,
        #[serde(skip_serializing_if = "Option::is_none")]
        kube_proxy_iptables: Option<Compared>,
    },
    Overlay {
        way: &'static str,
        flanneld: Option<Compared>,
    },
}

impl Scope {
    const fn service(services: Option<u32>, socket_lb: Option<&'static str>) -> Self {
        Self::Service { services, socket_lb, kube_proxy: None, kube_proxy_iptables: None }
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    figure: String,
    #[serde(flatten)]
    scope: Scope,
    unit: Unit,
    value: f64,
    /// The 95 % interval of a ratio; the smallest and the largest of anything else.
    low: f64,
    high: f64,
    /// Rounds or times.
    rounds: usize,
    goal: Option<Goal>,
    verdict: Option<Verdict>,
}

impl Goal {
    /// A goal holds if the interval reaches it.
    fn verdict(self, low: f64, high: f64) -> Verdict {
        let holds = match self {
            Self::AtLeast(goal) => high >= goal,
            Self::AtMost(goal) => low <= goal,
            Self::Same => low <= 1.0 && high >= 1.0,
        };
        if holds { Verdict::Holds } else { Verdict::Missed }
    }
}

impl Row {
    pub(super) fn ratio(figure: String, ratio: Ratio, rounds: usize) -> Self {
        Self {
            figure,
            scope: Scope::service(None, None),
            unit: Unit::Ratio,
            value: ratio.value,
            low: ratio.low,
            high: ratio.high,
            rounds,
            goal: None,
            verdict: None,
        }
    }

    /// A quantile of what was measured several times.
    pub(super) fn measured(figure: &str, unit: Unit, values: &[f64], part: f64) -> Self {
        let value = quantile(values, part);
        let ratio = Ratio {
            value,
            low: quantile(values, 0.0),
            high: quantile(values, 1.0),
            pairs: values.len(),
        };
        let row = Self::ratio(figure.into(), ratio, values.len());
        Self { unit, ..row }
    }

    /// Beside how many Services, and in which mode of the agent.
    pub(super) fn at(self, services: u32, socket_lb: Option<&'static str>) -> Self {
        Self { scope: Scope::service(Some(services), socket_lb), ..self }
    }

    /// By which way between nodes.
    pub(super) fn by(self, way: &'static str) -> Self {
        Self { scope: Scope::Overlay { way, flanneld: None }, ..self }
    }

    pub(super) fn goal(mut self, goal: Goal) -> Self {
        let (low, high) =
            if self.unit == Unit::Ratio { (self.low, self.high) } else { (self.value, self.value) };
        self.verdict = Some(goal.verdict(low, high));
        self.goal = Some(goal);
        self
    }

    /// Puts beside it what the other program came to in this run, or else what it came to
    /// elsewhere.
    pub(super) fn beside(mut self, here: Option<&Self>, elsewhere: Option<&'static str>) -> Self {
        let elsewhere = || elsewhere.map(|text| Compared::Elsewhere { text });
        let compared = here.map(Self::compared).or_else(elsewhere);
        match &mut self.scope {
            Scope::Service { kube_proxy: other, .. } | Scope::Overlay { flanneld: other, .. } => {
                *other = compared;
            }
        }
        self
    }

    /// The same for kube-proxy in iptables mode, of which nothing is known but from this run.
    pub(super) fn beside_iptables(mut self, here: Option<&Self>) -> Self {
        if let Scope::Service { kube_proxy_iptables: other, .. } = &mut self.scope {
            *other = here.map(Self::compared);
        }
        self
    }

    fn compared(&self) -> Compared {
        let Self { value, low, high, rounds, .. } = *self;
        Compared::InThisRun { value, low, high, rounds }
    }

    /// As a line of a Markdown table.
    pub(super) fn line(&self) -> String {
        self.line_with(false)
    }

    /// The same, with a column for kube-proxy in iptables mode where there is one.
    pub(super) fn line_with(&self, has_iptables: bool) -> String {
        let cell = |compared: &Option<Compared>| {
            compared.map_or(String::new(), |compared| compared.text(self.unit))
        };
        let (scope, compared) = match &self.scope {
            Scope::Service { services, socket_lb, kube_proxy, kube_proxy_iptables } => {
                let services = services.map_or(String::new(), |services| services.to_string());
                let mut compared = cell(kube_proxy);
                if has_iptables {
                    compared += " | ";
                    compared += &cell(kube_proxy_iptables);
                }
                (format!("{services} | {}", socket_lb.unwrap_or_default()), compared)
            }
            Scope::Overlay { way, flanneld } => ((*way).to_owned(), cell(flanneld)),
        };
        let goal = match self.goal {
            Some(Goal::AtLeast(goal)) => format!("≥ {}", self.unit.text(goal)),
            Some(Goal::AtMost(goal)) => format!("≤ {}", self.unit.text(goal)),
            Some(Goal::Same) => "1".into(),
            None => String::new(),
        };
        let spread = if self.rounds > 1 {
            format!("{} – {}", self.unit.text(self.low), self.unit.text(self.high))
        } else {
            String::new()
        };
        let verdict = match self.verdict {
            Some(Verdict::Holds) => "holds",
            Some(Verdict::Missed) => "**missed**",
            None => "",
        };
        format!(
            "| {} | {scope} | {} | {spread} | {} | {goal} | {compared} | {verdict} |",
            self.figure,
            self.unit.text(self.value),
            self.rounds,
        )
    }
}

impl Compared {
    fn text(self, unit: Unit) -> String {
        match self {
            Self::Elsewhere { text } => text.into(),
            Self::InThisRun { value, rounds: 1, .. } => unit.text(value),
            Self::InThisRun { value, low, high, rounds } => {
                let [value, low, high] = [value, low, high].map(|value| unit.text(value));
                format!("{value} ({low} – {high}; {rounds})")
            }
        }
    }
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.3}"),
            Self::Seconds if value < 0.1 => format!("{:.1} ms", value * 1e3),
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes => format!("{:.1} MB", value / 1e6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_holds_if_the_interval_reaches_it() {
        let ratio = Ratio { value: 0.965, low: 0.955, high: 0.975, pairs: 20 };
        let row = Row::ratio("connections".into(), ratio, 40).goal(Goal::AtLeast(0.97));
        let row = row.beside(None, Some("0.83"));
        assert_eq!(row.verdict, Some(Verdict::Holds));
        assert_eq!(
            row.line(),
            "| connections |  |  | 0.965 | 0.955 – 0.975 | 40 | ≥ 0.970 | 0.83 | holds |"
        );
        let row = row.goal(Goal::AtLeast(0.98));
        assert_eq!(row.verdict, Some(Verdict::Missed));
        assert_eq!(Goal::Same.verdict(0.99, 0.999), Verdict::Missed);
    }

    #[test]
    fn what_is_no_ratio_is_judged_by_its_value() {
        let values = [0.012, 0.031, 0.009];
        let row = Row::measured("a change", Unit::Seconds, &values, 0.99);
        let row = row.goal(Goal::AtMost(0.02));
        assert_eq!(row.verdict, Some(Verdict::Missed));
        assert!(row.line().contains("| 31.0 ms | 9.0 ms – 31.0 ms | 3 | ≤ 20.0 ms |"));
    }

    #[test]
    fn lines_of_both_benchmarks_have_columns_of_their_own() {
        let ratio = Ratio { value: 0.5, low: 0.4, high: 0.6, pairs: 3 };
        let row = Row::ratio("bulk".into(), ratio, 3).by("eBPF").beside(None, Some("0.43"));
        assert_eq!(row.line(), "| bulk | eBPF | 0.500 | 0.400 – 0.600 | 3 |  | 0.43 |  |");
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!((&json["way"], &json["flanneld"]["text"]), (&"eBPF".into(), &"0.43".into()));
        assert!(json.get("kube_proxy").is_none());
        let row = Row::ratio("bulk".into(), ratio, 3).at(10, Some("on"));
        assert!(row.line().starts_with("| bulk | 10 | on | 0.500 |"), "{}", row.line());
    }
}
