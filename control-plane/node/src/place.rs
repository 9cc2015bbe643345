//! Which node is to hold a replica. Pure.

use mycelium_ram_core::NodeId;
use mycelium_spores::NodeReport;

/// A node of the network, as a place for a replica.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    /// `None`: not heard lately.
    pub(crate) report: Option<NodeReport>,
    /// It failed a short while ago.
    pub(crate) failed: bool,
}

/// The choice, and why, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) why: String,
}

/// Chooses the node with the most free memory among those that can hold `need_bytes`, never `active`. An error tells for
/// every node why not.
pub(crate) fn choose(candidates: &[Candidate], active: NodeId, need_bytes: u64) -> Result<Choice, String> {
    let others: Vec<&Candidate> = candidates.iter().filter(|c| c.node != active).collect();
    let fit: Vec<(&Candidate, u64)> =
        others.iter().filter_map(|c| free(c, need_bytes).ok().map(|free| (*c, free))).collect();
    // Of equal ones the lower key, so that every look comes to the same choice.
    let best = fit.iter().max_by(|(a, x), (b, y)| x.cmp(y).then(b.node.cmp(&a.node)));
    let Some((best, free_bytes)) = best else { return Err(nowhere(&others, need_bytes)) };
    let (name, free) = (&best.name, free_bytes >> 20);
    let why = match fit.len() {
        1 => format!("{name} is the only node possible ({free} MiB free)"),
        nodes => format!("{name} has the most free memory ({free} MiB) of {nodes} nodes possible"),
    };
    Ok(Choice { node: best.node, name: best.name.clone(), why })
}

fn free(candidate: &Candidate, need_bytes: u64) -> Result<u64, String> {
    let Some(report) = &candidate.report else { return Err("is not heard".to_owned()) };
    if !report.kvm {
        return Err("has no /dev/kvm".to_owned());
    }
    if candidate.failed {
        return Err("failed a moment ago".to_owned());
    }
    if report.free_memory_bytes < need_bytes {
        let (has, needs) = (report.free_memory_bytes >> 20, need_bytes >> 20);
        return Err(format!("has {has} MiB free, {needs} MiB are needed"));
    }
    Ok(report.free_memory_bytes)
}

fn nowhere(others: &[&Candidate], need_bytes: u64) -> String {
    if others.is_empty() {
        return "no room for a replica: this is the network's only node".to_owned();
    }
    let each = others.iter().map(|c| format!("{} {}", c.name, free(c, need_bytes).unwrap_err()));
    format!("no room for a replica: {}", each.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8, free_mib: u64) -> Candidate {
        let report = NodeReport { free_memory_bytes: free_mib << 20, kvm: true, ..NodeReport::default() };
        let name = char::from(b'a' + n).to_string();
        Candidate { node: NodeId([n; 32]), name, report: Some(report), failed: false }
    }

    #[test]
    fn the_most_free_memory_wins_and_never_the_active() {
        let nodes = [node(0, 9000), node(1, 500), node(2, 800)];
        let choice = choose(&nodes, NodeId([0; 32]), 300 << 20).unwrap();
        assert_eq!(choice.name, "c");
        assert_eq!(choice.why, "c has the most free memory (800 MiB) of 2 nodes possible");
    }

    #[test]
    fn no_room_says_why_for_every_node() {
        let no_kvm = NodeReport { kvm: false, ..node(2, 9000).report.unwrap() };
        let nodes = [
            node(0, 9000),
            node(1, 100),
            Candidate { report: Some(no_kvm), ..node(2, 0) },
            Candidate { report: None, ..node(3, 0) },
            Candidate { failed: true, ..node(4, 9000) },
        ];
        let why = choose(&nodes, NodeId([0; 32]), 300 << 20).unwrap_err();
        assert_eq!(
            why,
            "no room for a replica: b has 100 MiB free, 300 MiB are needed; c has no /dev/kvm; d is not heard; \
             e failed a moment ago"
        );
        assert!(choose(&nodes[..1], NodeId([0; 32]), 1).unwrap_err().contains("only node"));
    }

    #[test]
    fn equal_nodes_give_the_same_choice_every_time() {
        let nodes = [node(2, 500), node(1, 500)];
        assert_eq!(choose(&nodes, NodeId([0; 32]), 1).unwrap().name, "b");
        let only = choose(&nodes[..1], NodeId([0; 32]), 1).unwrap();
        assert_eq!(only.why, "c is the only node possible (500 MiB free)");
    }
}
