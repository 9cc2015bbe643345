//! Figures as rows that people read.

use crate::{Figure, Spread, human};

/// The line above the rows.
#[must_use]
pub fn heading() -> String {
    line("figure", "ours p50", "p99", "peer p50", "p99", "ratio", "goal", "peer")
}

/// One figure.
#[must_use]
pub fn row(figure: &Figure) -> String {
    let p50 = |spread: &Spread| human(spread.p50, &figure.unit);
    let p99 = |spread: &Spread| spread.p99.map_or_else(String::new, |p99| human(p99, &figure.unit));
    let verdict = format!("{} {}", figure.goal, if figure.met { "met" } else { "NOT MET" });
    line(
        &figure.figure,
        &p50(&figure.ours),
        &p99(&figure.ours),
        &figure.peer.as_ref().map_or_else(|| "-".to_owned(), p50),
        &figure.peer.as_ref().map_or_else(String::new, p99),
        &figure.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
        &verdict,
        &peers(figure),
    )
}

/// The peer compared with, and what the others reached.
fn peers(figure: &Figure) -> String {
    let absent = |there: bool| if there { "" } else { " (not installed)" };
    if figure.peers.is_empty() {
        let sought = figure.peer_name != "none";
        return format!("{}{}", figure.peer_name, absent(!sought || figure.peer.is_some()));
    }
    let others = figure.peers.iter().filter(|(name, _)| **name != figure.peer_name).map(|(name, spread)| {
        spread.map_or_else(
            || format!("{name} not here"),
            |spread| format!("{name} {}", human(spread.p50, &figure.unit)),
        )
    });
    format!("{}; {}", figure.peer_name, others.collect::<Vec<_>>().join("; "))
}

#[expect(clippy::too_many_arguments, reason = "one per column")]
fn line(
    name: &str,
    ours: &str,
    ours_p99: &str,
    peer: &str,
    peer_p99: &str,
    ratio: &str,
    goal: &str,
    peers: &str,
) -> String {
    format!("{name:<34} {ours:>11} {ours_p99:>11}  {peer:>11} {peer_p99:>11}  {ratio:>5}  {goal:<32} {peers}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Better, Goal, Measured};

    fn figure(peers: Vec<(String, Option<Spread>)>) -> Figure {
        let ours = Spread::of(vec![15_000.0]).unwrap();
        let goal = Goal::parse("<= 0.5").unwrap();
        let name = "vmm.start".to_owned();
        Measured { name, unit: "us", better: Better::Lower, ours, peers, goal }.judge("r")
    }

    #[test]
    fn a_row_says_whether_the_goal_was_met_and_against_whom() {
        let text = row(&figure(vec![("qemu-7.2".into(), Some(Spread::single(60_000.0)))]));
        for part in ["vmm.start", "15.0 ms", "60.0 ms", "0.25", "<= 0.5 met", "qemu-7.2"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_row_names_a_peer_that_is_not_there() {
        let text = row(&figure(vec![("qemu".into(), None)]));
        assert!(text.contains("NOT MET") && text.contains("qemu (not installed)"), "{text}");
        let two = vec![("a".into(), Some(Spread::single(2.0))), ("b".into(), None)];
        assert!(row(&figure(two)).contains("a; b not here"));
        assert!(row(&figure(Vec::new())).trim_end().ends_with("none"));
    }

    #[test]
    fn columns_stand_below_their_heading() {
        let text = row(&figure(Vec::new()));
        assert_eq!(heading().find(" goal"), text.find(" <= 0.5"));
    }
}
