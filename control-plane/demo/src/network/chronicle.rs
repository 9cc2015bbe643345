//! What the daemons have said, in order: news for people and facts for the verdict. Pure.

use mycelium_api::{NetworkStatus, Vm};

/// One daemon's answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Look {
    /// When they were there, on CLOCK_BOOTTIME, nanoseconds.
    pub(crate) at: u64,
    pub(crate) status: NetworkStatus,
    pub(crate) vms: Vec<Vm>,
}

/// A place for the replica, as the daemon of the VM's node chose it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// The choosing node.
    pub(crate) by: usize,
    /// Name of the chosen one; empty if there is none.
    pub(crate) replica: String,
    pub(crate) why: String,
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Chronicle {
    names: &'static [&'static str],
    /// The nodes' keys.
    pub(crate) keys: Vec<String>,
    /// Which nodes have had a vote.
    pub(crate) voted: Vec<bool>,
    pub(crate) placements: Vec<Placement>,
    /// Who had the vote, from when on.
    pub(crate) voters: Vec<(u64, Vec<String>)>,
    lost: Vec<bool>,
    /// The newest look of each node's daemon.
    looks: Vec<Option<Look>>,
    trouble: String,
    news: Vec<(u64, String)>,
}

impl Chronicle {
    pub(crate) fn new(names: &'static [&'static str], keys: Vec<String>) -> Self {
        Self {
            names,
            keys,
            voted: vec![false; names.len()],
            placements: Vec::new(),
            voters: Vec::new(),
            lost: vec![false; names.len()],
            looks: vec![None; names.len()],
            trouble: String::new(),
            news: Vec::new(),
        }
    }

    pub(crate) fn lose(&mut self, node: usize) {
        self.lost[node] = true;
    }

    pub(crate) fn is_lost(&self, node: usize) -> bool {
        self.lost[node]
    }

    pub(crate) fn take_news(&mut self) -> Vec<(u64, String)> {
        std::mem::take(&mut self.news)
    }

    /// Takes note of a daemon's answers.
    pub(crate) fn note(&mut self, node: usize, look: Look) {
        if self.lost[node] {
            return;
        }
        for member in look.status.members.iter().filter(|member| member.votes) {
            if let Some(n) = self.names.iter().position(|name| *name == member.name) {
                self.voted[n] = true;
            }
        }
        let own = look.vms.iter().find(|vm| vm.role == "active" && vm.node == self.keys[node]);
        if let Some(vm) = own.cloned() {
            self.note_placement(node, look.at, &vm);
        }
        // One voice only: the others say the same a little earlier or later.
        if self.lost.iter().position(|lost| !lost) == Some(node) {
            self.note_network(&look, self.looks[node].as_ref().map(|l| l.status.clone()).as_ref());
        }
        self.looks[node] = Some(look);
    }

    fn note_placement(&mut self, by: usize, at: u64, vm: &Vm) {
        let name = self.names[by];
        if vm.trouble.starts_with("replica on ") && vm.trouble != self.trouble {
            self.trouble.clone_from(&vm.trouble);
            self.news.push((at, format!("node {name} could not have its {}", vm.trouble)));
        }
        let placement = Placement { by, replica: vm.replica_node_name.clone(), why: vm.placement.clone() };
        if placement.why.is_empty() || self.placements.last() == Some(&placement) {
            return;
        }
        let (replica, why) = (&placement.replica, &placement.why);
        // Between choices the reason of the last one is still there.
        if !replica.is_empty() {
            self.news.push((at, format!("node {name} chooses node {replica} for the replica: {why}")));
        } else if why.starts_with("no room") {
            self.news.push((at, format!("node {name}: {why}")));
        }
        self.placements.push(placement);
    }

    fn note_network(&mut self, now: &Look, before: Option<&NetworkStatus>) {
        for member in now.status.members.iter().filter(|member| member.alive == "no") {
            let was = before.and_then(|b| b.members.iter().find(|m| m.node == member.node));
            if was.is_none_or(|was| was.alive != "no") {
                self.news.push((now.at, format!("node {} is held dead: nobody hears it", member.name)));
            }
        }
        let (voters, leader) = (voters(&now.status), leader(&now.status));
        if self.voters.last().map(|(_, last)| last) != Some(&voters) {
            let who = match voters.as_slice() {
                [only] => format!("node {only} alone votes now"),
                several => format!("nodes {} vote", several.join(", ")),
            };
            self.news.push((now.at, who));
            self.voters.push((now.at, voters));
        }
        if before.map(self::leader) != Some(leader) {
            let who = leader.map_or_else(
                || "no node leads: the voters elect one".to_owned(),
                |leader| format!("node {leader} leads the voters"),
            );
            self.news.push((now.at, who));
        }
    }

    /// Whether those that are left after the loss of this node can decide, as every living node sees it.
    pub(crate) fn decides_without(&self, node: usize) -> bool {
        let living = |name: &str| {
            let n = self.names.iter().position(|n| *n == name);
            n.is_some_and(|n| n != node && !self.lost[n])
        };
        let seen = self.looks.iter().zip(&self.lost).filter(|(_, lost)| !**lost);
        seen.into_iter().all(|(look, _)| {
            let voters = look.as_ref().map(|look| voters(&look.status)).unwrap_or_default();
            2 * voters.iter().filter(|name| living(name)).count() > voters.len()
        })
    }
}

fn voters(status: &NetworkStatus) -> Vec<String> {
    let mut names: Vec<_> = status.members.iter().filter(|m| m.votes).map(|m| m.name.clone()).collect();
    names.sort();
    names
}

fn leader(status: &NetworkStatus) -> Option<&str> {
    status.members.iter().find(|m| m.leads).map(|m| m.name.as_str())
}

#[cfg(test)]
mod tests {
    use mycelium_api::Member;

    use super::*;

    const NAMES: [&str; 3] = ["a", "b", "c"];

    fn chronicle() -> Chronicle {
        Chronicle::new(&NAMES, NAMES.map(|name| format!("key-{name}")).to_vec())
    }

    /// What a daemon says: who votes, who leads, who is alive, and its own VMs.
    fn look(at: u64, votes: &str, leads: &str, alive: &str, vms: Vec<Vm>) -> Look {
        let member = |name: &str| Member {
            node: format!("key-{name}"),
            name: name.to_owned(),
            votes: votes.contains(name),
            leads: leads == name,
            alive: if alive.contains(name) { "yes" } else { "no" }.to_owned(),
            ..Member::default()
        };
        let status = NetworkStatus { members: NAMES.map(member).to_vec(), ..NetworkStatus::default() };
        Look { at, status, vms }
    }

    fn active(node: &str, replica: &str, why: &str) -> Vm {
        Vm {
            role: "active".to_owned(),
            node: format!("key-{node}"),
            replica_node_name: replica.to_owned(),
            placement: why.to_owned(),
            ..Vm::default()
        }
    }

    fn news(chronicle: &mut Chronicle) -> Vec<String> {
        chronicle.take_news().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn news_is_told_once_and_by_one_voice() {
        let mut c = chronicle();
        for at in 0..2 {
            let vms = vec![active("a", "b", "b has room")];
            c.note(0, look(at, "abc", "a", "abc", vms.clone()));
            c.note(1, look(at, "ab", "", "abc", vms));
        }
        let told = [
            "node a chooses node b for the replica: b has room",
            "nodes a, b, c vote",
            "node a leads the voters",
        ];
        assert_eq!(news(&mut c), told);
        assert_eq!(c.voted, [true; 3]);
    }

    #[test]
    fn after_a_loss_the_next_node_speaks() {
        let mut c = chronicle();
        c.note(0, look(1, "abc", "a", "abc", Vec::new()));
        c.note(1, look(1, "abc", "a", "abc", Vec::new()));
        c.lose(0);
        news(&mut c);
        c.note(0, look(2, "a", "a", "a", Vec::new()));
        assert!(news(&mut c).is_empty(), "a lost node says nothing");
        c.note(1, look(3, "c", "", "bc", vec![active("b", "c", "c has room")]));
        let told = [
            "node b chooses node c for the replica: c has room",
            "node a is held dead: nobody hears it",
            "node c alone votes now",
            "no node leads: the voters elect one",
        ];
        assert_eq!(news(&mut c), told);
        assert_eq!(c.voters.last(), Some(&(3, vec!["c".to_owned()])));
        assert_eq!(c.placements.len(), 1);
    }

    #[test]
    fn a_node_may_be_lost_when_the_votes_that_are_left_are_a_majority() {
        let mut c = chronicle();
        assert!(!c.decides_without(0), "nothing is known yet");
        (0..3).for_each(|n| c.note(n, look(1, "abc", "a", "abc", Vec::new())));
        assert!(c.decides_without(0));
        c.lose(0);
        assert!(!c.decides_without(1), "one of three");
        c.note(1, look(2, "c", "c", "bc", Vec::new()));
        assert!(!c.decides_without(1), "node c does not know yet");
        c.note(2, look(2, "c", "c", "bc", Vec::new()));
        assert!(c.decides_without(1));
        assert!(!c.decides_without(2));
    }
}
