//! Paths that die, in the middle of things, and return.

mod common;

use std::collections::BTreeSet;

use common::{Pair, bundle, next, pair, pattern};
use rhizomorph_link::limits::BUNDLE_MAX;
use rhizomorph_link::{DownReason, LinkEvent, LinkReceiver, PathState, Priority};

async fn path_up(receiver: &mut LinkReceiver, number: u8) {
    next(receiver, |event| matches!(event, LinkEvent::PathUp(id) if id.number() == number).then_some(()))
        .await;
}

async fn path_down(receiver: &mut LinkReceiver, number: u8) -> DownReason {
    let down = |event| match event {
        LinkEvent::PathDown(id, reason) if id.number() == number => Some(reason),
        _ => None,
    };
    next(receiver, down).await
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
    path_up(&mut pair.receiver, 1).await;
    pair.gates[0].cut_after(2_000);
    transfer(&mut pair, 4).await;
    assert!(matches!(path_down(&mut pair.receiver, 0).await, DownReason::Silent(_)));
    assert_eq!(pair.sender.paths()[1].state, PathState::Live);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_returned_path_is_used_again() {
    let mut pair = pair(2).await;
    path_up(&mut pair.receiver, 1).await;
    pair.gates[1].cut();
    path_down(&mut pair.receiver, 1).await;
    pair.gates[1].reopen();
    path_up(&mut pair.receiver, 1).await;
    let before = pair.sender.paths()[1].bytes_sent;
    transfer(&mut pair, 2).await;
    let after = pair.sender.paths()[1].bytes_sent;
    assert!(after - before > 500_000, "{before} then {after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_path_cut_bundles_wait_and_the_redial_rejoins_the_same_link() {
    let mut pair = pair(2).await;
    path_up(&mut pair.receiver, 1).await;
    pair.gates.iter().for_each(|gate| gate.cut());
    let receipt = pair.sender.send_bundle(Priority::Bulk, pattern(3_000_000, 5)).await.unwrap();
    // Both ends must have noticed, and the dialer must have dialed again, before anything passes.
    path_down(&mut pair.incoming.receiver, 0).await;
    path_down(&mut pair.receiver, 0).await;
    pair.gates.iter().for_each(|gate| gate.reopen());
    let (id, payload) = next(&mut pair.incoming.receiver, bundle).await;
    assert!(id == 0 && payload.into_bytes() == pattern(3_000_000, 5));
    receipt.acked().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_accepting_end_survives_a_cut_as_well() {
    let mut pair = pair(2).await;
    path_up(&mut pair.incoming.receiver, 1).await;
    pair.gates[0].cut_after(500);
    let receipt = pair.incoming.sender.send_bundle(Priority::Bulk, pattern(BUNDLE_MAX, 3)).await.unwrap();
    let (_, payload) = next(&mut pair.receiver, bundle).await;
    assert!(payload.into_bytes() == pattern(BUNDLE_MAX, 3));
    receipt.acked().await.unwrap();
}
