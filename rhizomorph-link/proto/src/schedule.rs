//! Which path a stripe should take: the one on which it would arrive first.
//!
//! Plain "fewest queued" or "lowest RTT" both lose to the best single path when paths differ: the first loads a slow
//! path with the last stripe, the second leaves bandwidth unused. Here every queued stripe is placed in thought, in
//! order, on the path that would complete it first given everything placed before it, and only those whose path has
//! room now are really handed over. The others wait: by the time a fast path has room again they may fit better there.

use crate::ids::{PathId, Priority};
use crate::limits::{LOOKAHEAD, PATHS_MAX};
use crate::path_model::PathModel;

/// Picks the first of the queued stripes (`lengths`, in bytes, in queue order) that may leave now, and its path.
///
/// Returns the stripe's position in the queue. `paths` are the live ones. `None` means that every stripe looked at
/// is better off waiting for a path that is full.
pub fn pick<'a>(
    paths: impl Iterator<Item = (PathId, &'a PathModel)> + Clone,
    priority: Priority,
    lengths: impl Iterator<Item = u64>,
) -> Option<(usize, PathId)> {
    let mut queued = [0u64; PATHS_MAX];
    for (path, model) in paths.clone() {
        queued[path.index()] = model.ahead_of(priority);
    }
    for (position, len) in lengths.take(LOOKAHEAD).enumerate() {
        let (path, model) = earliest(paths.clone(), &queued, len)?;
        queued[path.index()] += len;
        if queued[path.index()] <= model.queue_limit() {
            return Some((position, path));
        }
        if paths.clone().all(|(path, model)| queued[path.index()] >= model.queue_limit()) {
            return None;
        }
    }
    None
}

fn earliest<'a>(
    paths: impl Iterator<Item = (PathId, &'a PathModel)>,
    queued: &[u64; PATHS_MAX],
    len: u64,
) -> Option<(PathId, &'a PathModel)> {
    paths.min_by(|(a, model_a), (b, model_b)| {
        let done = |path: &PathId, model: &PathModel| model.completion(queued[path.index()] + len);
        done(a, model_a).total_cmp(&done(b, model_b))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const STRIPE: u64 = 128 * 1024;

    fn path(number: u8) -> PathId {
        PathId::new(number).unwrap()
    }

    fn model(rate: f64, rtt_ms: u64) -> PathModel {
        let rtt = Duration::from_millis(rtt_ms);
        let mut model = PathModel::new(rtt);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "small positive test figures"
        )]
        model.hint(rtt, (rate * rtt.as_secs_f64()) as u64, Duration::ZERO);
        model
    }

    /// Sends `count` stripes over ideal pipes and returns the seconds until the last has arrived.
    ///
    /// Each pipe delivers at exactly its rate, in order, half a round trip later.
    fn run(specs: &[(f64, u64)], count: usize) -> f64 {
        let mut models: Vec<PathModel> = specs.iter().map(|&(rate, rtt)| model(rate, rtt)).collect();
        let mut pipes: Vec<Vec<f64>> = vec![Vec::new(); specs.len()];
        let (mut left, mut now, mut last) = (count, 0.0f64, 0.0f64);
        loop {
            while left > 0 {
                let live = models.iter().enumerate().map(|(i, m)| (path(u8::try_from(i).unwrap()), m));
                let Some((_, chosen)) = pick(live, Priority::Bulk, std::iter::repeat_n(STRIPE, left)) else {
                    break;
                };
                let (rate, rtt_ms) = specs[chosen.index()];
                let pipe = &mut pipes[chosen.index()];
                let rtt = f64::from(u32::try_from(rtt_ms).unwrap()) / 1e3;
                let free = pipe.last().map_or(now, |&end| end.max(now));
                #[expect(clippy::cast_precision_loss, reason = "test figures")]
                pipe.push(free + STRIPE as f64 / rate);
                last = last.max(pipe.last().unwrap() + rtt / 2.0);
                models[chosen.index()].sent(Priority::Bulk, STRIPE, Duration::from_secs_f64(now));
                left -= 1;
            }
            let next = pipes.iter().enumerate().filter_map(|(i, p)| p.first().map(|&end| (i, end)));
            let Some((i, end)) = next.min_by(|a, b| a.1.total_cmp(&b.1)) else { return last };
            now = now.max(end);
            pipes[i].remove(0);
            // The rates of these models are given, not learned: only the load changes.
            models[i].taken_back(Priority::Bulk, STRIPE);
        }
    }

    #[test]
    fn an_idle_slow_path_is_left_alone_when_the_fast_one_finishes_sooner() {
        let (fast, slow) = (model(1e8, 10), model(1e6, 100));
        let paths = [(path(0), &fast), (path(1), &slow)];
        let picked = pick(paths.iter().copied(), Priority::Bulk, [STRIPE].into_iter());
        assert_eq!(picked, Some((0, path(0))));
    }

    #[test]
    fn equal_paths_share() {
        let one = run(&[(5e7, 10)], 400);
        let two = run(&[(5e7, 10), (5e7, 10)], 400);
        assert!(two < one * 0.52, "{two} against {one}");
    }

    #[test]
    fn nothing_is_picked_without_a_path() {
        assert_eq!(pick(std::iter::empty(), Priority::Bulk, [STRIPE].into_iter()), None);
    }

    proptest! {
        /// A further path never makes a transfer slower than the best path alone. The tolerance is one stripe's time on the
        /// slowest path: of a stripe on its way only the whole is known, so a last one may be given to a path that turns
        /// out to take longest (proptest-regressions/schedule.txt: 30 MB/s beside 1 MB/s, 21 % slower).
        #[test]
        fn never_slower_than_the_best_single_path(
            specs in prop::collection::vec((1e6f64..2e8, 2u64..150), 2..5),
            count in 1usize..200,
        ) {
            let all = run(&specs, count);
            let best = specs.iter().map(|&spec| run(&[spec], count)).fold(f64::MAX, f64::min);
            let stripe = specs.iter().map(|s| STRIPE as f64 / s.0).fold(0.0, f64::max);
            prop_assert!(all <= best + stripe, "all {all} best {best} of {specs:?} x {count}");
        }

        /// With much to send the sum of the rates is used.
        #[test]
        fn long_transfers_use_every_path(specs in prop::collection::vec((1e7f64..1e8, 2u64..40), 2..5)) {
            let all = run(&specs, 4000);
            let ideal = 4000.0 * STRIPE as f64 / specs.iter().map(|s| s.0).sum::<f64>();
            prop_assert!(all <= ideal * 1.05 + 0.1, "all {all} ideal {ideal} of {specs:?}");
        }
    }
}
