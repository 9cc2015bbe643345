//! Counts of what runs have exercised: a green run that took nothing over proves nothing.

use std::ops::AddAssign;

/// Counts over one or many runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Stats {
    pub runs: u64,
    pub events: u64,
    pub virtual_ms: u64,
    pub epochs: u64,
    pub outputs: u64,
    pub takeovers: u64,
    pub takeovers_failed: u64,
    pub degrades: u64,
    pub down: u64,
    pub dismissals: u64,
    pub hand_overs: u64,
    pub handed_over: u64,
    pub modes_set: u64,
    pub lost_in_async: u64,
    pub resumed: u64,
    pub generations: u64,
    pub leaders_lost: u64,
    pub contested: u64,
    pub swaps_lost: u64,
    pub swaps_kept: u64,
}

impl AddAssign for Stats {
    fn add_assign(&mut self, o: Self) {
        self.runs += o.runs;
        self.events += o.events;
        self.virtual_ms += o.virtual_ms;
        self.epochs += o.epochs;
        self.outputs += o.outputs;
        self.takeovers += o.takeovers;
        self.takeovers_failed += o.takeovers_failed;
        self.degrades += o.degrades;
        self.down += o.down;
        self.dismissals += o.dismissals;
        self.hand_overs += o.hand_overs;
        self.handed_over += o.handed_over;
        self.modes_set += o.modes_set;
        self.lost_in_async += o.lost_in_async;
        self.resumed += o.resumed;
        self.generations += o.generations;
        self.leaders_lost += o.leaders_lost;
        self.contested += o.contested;
        self.swaps_lost += o.swaps_lost;
        self.swaps_kept += o.swaps_kept;
    }
}
