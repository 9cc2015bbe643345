//! Bundles and datagrams over healthy paths.

use std::collections::HashSet;

use crate::common::{bundle, next, pair, pattern};
use bytes::Bytes;
use rhizomorph_link::limits::{BUNDLE_MAX, DATAGRAM_MAX};
use rhizomorph_link::{LinkEvent, Priority, SendError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_of_every_size_arrive_exactly_once_over_both_paths() {
    let mut pair = pair(2).await;
    assert_eq!(pair.incoming.label, "vm-7");
    assert_eq!(pair.incoming.peer, pair.here.peer_key());
    next(&mut pair.receiver, |event| {
        matches!(event, LinkEvent::PathUp(id) if id.number() == 1).then_some(())
    })
    .await;
    let sizes = [0, 1, 100_000, 131_072, 131_073, 5_000_000, BUNDLE_MAX];
    let sender = pair.sender.clone();
    let sending = tokio::spawn(async move {
        for (seed, len) in (0..).zip(sizes) {
            let receipt = sender.send_bundle(Priority::Bulk, pattern(len, seed)).await.unwrap();
            assert_eq!(receipt.id().0, seed);
            receipt.acked().await.unwrap();
        }
    });
    for (seed, len) in (0..).zip(sizes) {
        let (id, payload) = next(&mut pair.incoming.receiver, bundle).await;
        assert_eq!(id, seed);
        assert!(payload.into_bytes() == pattern(len, seed), "bundle {id} of {len} bytes");
    }
    sending.await.unwrap();
    let paths = pair.sender.paths();
    assert!(paths.iter().all(|path| path.bytes_sent > 100_000), "both paths carry stripes: {paths:?}");
}

#[tokio::test]
async fn both_directions_and_both_classes_at_once() {
    let mut pair = pair(2).await;
    let ours = pair.sender.send_bundle(Priority::Control, pattern(300_000, 1)).await.unwrap();
    let theirs = pair.incoming.sender.send_bundle(Priority::Bulk, pattern(300_000, 2)).await.unwrap();
    let (_, got_there) = next(&mut pair.incoming.receiver, bundle).await;
    let (_, got_here) = next(&mut pair.receiver, bundle).await;
    assert!(got_there.into_bytes() == pattern(300_000, 1));
    assert!(got_here.into_bytes() == pattern(300_000, 2));
    ours.acked().await.unwrap();
    theirs.acked().await.unwrap();
}

#[tokio::test]
async fn more_than_the_window_waits_for_the_receiver_and_gets_through() {
    let mut pair = pair(2).await;
    let sender = pair.sender.clone();
    let sending = tokio::spawn(async move {
        let mut receipts = Vec::new();
        for seed in 0..5 {
            receipts.push(sender.send_bundle(Priority::Bulk, pattern(BUNDLE_MAX, seed)).await.unwrap());
        }
        for receipt in receipts {
            receipt.acked().await.unwrap();
        }
    });
    let mut seen = HashSet::new();
    while seen.len() < 5 {
        let (id, payload) = next(&mut pair.incoming.receiver, bundle).await;
        assert!(seen.insert(id) && payload.into_bytes() == pattern(BUNDLE_MAX, id));
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn a_datagram_sent_on_two_paths_arrives_once() {
    let mut pair = pair(2).await;
    next(&mut pair.receiver, |event| {
        matches!(event, LinkEvent::PathUp(id) if id.number() == 1).then_some(())
    })
    .await;
    let mut seen = HashSet::new();
    for number in 0u32..300 {
        pair.sender.send_datagram(Bytes::copy_from_slice(&number.to_be_bytes())).unwrap();
        let got = next(&mut pair.incoming.receiver, |event| match event {
            LinkEvent::Datagram(bytes) => Some(bytes),
            _ => None,
        });
        assert!(seen.insert(got.await));
    }
    // A bundle behind them flushes what is still on the way.
    pair.sender.send_bundle(Priority::Bulk, pattern(10, 0)).await.unwrap();
    let rest = next(&mut pair.incoming.receiver, |event| match event {
        LinkEvent::Datagram(bytes) => Some(Some(bytes)),
        LinkEvent::Bundle { .. } => Some(None),
        _ => None,
    });
    assert_eq!(rest.await, None, "a second copy came through");
    assert_eq!(seen.len(), 300);
    let sent: Vec<u64> = pair.sender.paths().iter().map(|path| path.bytes_sent).collect();
    assert!(sent.iter().all(|&bytes| bytes > 300 * 40), "one path carried no copies: {sent:?}");
}

#[tokio::test]
async fn what_is_too_large_is_refused_at_once() {
    let pair = pair(1).await;
    let datagram = pair.sender.send_datagram(Bytes::from(vec![0; DATAGRAM_MAX + 1]));
    assert_eq!(datagram, Err(SendError::DatagramTooLarge(DATAGRAM_MAX + 1)));
    assert_eq!(pair.sender.send_datagram(Bytes::from(vec![0; DATAGRAM_MAX])), Ok(()));
    let bundle = pair.sender.send_bundle(Priority::Bulk, vec![0; BUNDLE_MAX + 1]).await;
    assert_eq!(bundle.unwrap_err(), SendError::BundleTooLarge(BUNDLE_MAX + 1));
}
