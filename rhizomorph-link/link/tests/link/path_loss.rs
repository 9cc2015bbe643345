//! Paths that die, in the middle of things, and return.

use std::collections::BTreeSet;

use crate::common::{Pair, bundle, next, pair, pattern};
use rhizomorph_link::limits::BUNDLE_MAX;
use rhizomorph_link::{LinkReceiver, LinkSender, PathState, Priority};

/// Waits until a path's state is as wanted. Every change of state comes with an event, so looking again after each
/// event suffices; the events themselves may have come and gone before.
async fn until(
    sender: &LinkSender,
    receiver: &mut LinkReceiver,
    number: usize,
    wanted: fn(PathState) -> bool,
) {
    while !sender.paths().get(number).is_some_and(|path| wanted(path.state)) {
        receiver.recv().await.expect("the link stays open");
    }
}

async fn path_up(sender: &LinkSender, receiver: &mut LinkReceiver, number: usize) {
    until(sender, receiver, number, |state| state == PathState::Live).await;
}

async fn path_down(sender: &LinkSender, receiver: &mut LinkReceiver, number: usize) {
    until(sender, receiver, number, |state| state != PathState::Live).await;
}

/// Sends `count` bundles and receives them all, in any order, each once and as sent.
async fn transfer(pair: &mut Pair, count: u64) {
    let sender = pair.sender.clone();
    let sending = tokio::spawn(async move {
        let mut receipts = Vec::new();
        for seed in 0..count {
            receipts.push(sender.send_bundle(Priority::Bulk, pattern(BUNDLE_MAX, seed)).await.unwrap());
        }
        for receipt in receipts {
            receipt.acked().await.unwrap();
        }
    });
    let mut missing: BTreeSet<u64> = (0..count).collect();
    while !missing.is_empty() {
        let (id, payload) = next(&mut pair.incoming.receiver, bundle).await;
        assert!(missing.remove(&id) && payload.into_bytes() == pattern(BUNDLE_MAX, id));
    }
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_cut_in_mid_transfer_loses_nothing() {
    let mut pair = pair(2).await;
    path_up(&pair.sender, &mut pair.receiver, 1).await;
    pair.gates[0].cut_after(2_000);
    transfer(&mut pair, 4).await;
    path_down(&pair.sender, &mut pair.receiver, 0).await;
    assert!(pair.sender.paths()[0].down.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_returned_path_is_used_again() {
    let mut pair = pair(2).await;
    path_up(&pair.sender, &mut pair.receiver, 1).await;
    pair.gates[1].cut();
    path_down(&pair.sender, &mut pair.receiver, 1).await;
    pair.gates[1].reopen();
    path_up(&pair.sender, &mut pair.receiver, 1).await;
    let before = pair.sender.paths()[1].bytes_sent;
    transfer(&mut pair, 2).await;
    let after = pair.sender.paths()[1].bytes_sent;
    assert!(after - before > 100_000, "{before} then {after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_path_cut_bundles_wait_and_the_redial_rejoins_the_same_link() {
    let mut pair = pair(2).await;
    path_up(&pair.sender, &mut pair.receiver, 1).await;
    pair.gates.iter().for_each(|gate| gate.cut());
    let receipt = pair.sender.send_bundle(Priority::Bulk, pattern(3_000_000, 5)).await.unwrap();
    // Both ends must have noticed, and the dialer must have dialed again, before anything passes.
    path_down(&pair.incoming.sender, &mut pair.incoming.receiver, 0).await;
    path_down(&pair.sender, &mut pair.receiver, 0).await;
    pair.gates.iter().for_each(|gate| gate.reopen());
    let (id, payload) = next(&mut pair.incoming.receiver, bundle).await;
    assert!(id == 0 && payload.into_bytes() == pattern(3_000_000, 5));
    receipt.acked().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_accepting_end_survives_a_cut_as_well() {
    let mut pair = pair(2).await;
    path_up(&pair.incoming.sender, &mut pair.incoming.receiver, 1).await;
    pair.gates[0].cut_after(500);
    let receipt = pair.incoming.sender.send_bundle(Priority::Bulk, pattern(BUNDLE_MAX, 3)).await.unwrap();
    let (_, payload) = next(&mut pair.receiver, bundle).await;
    assert!(payload.into_bytes() == pattern(BUNDLE_MAX, 3));
    receipt.acked().await.unwrap();
}
