//! Closing, dropping, restarting.

use crate::common::{bundle, dial_config, listen, listen_at, next, pair, pattern};
use rhizomorph_link::{
    CloseReason, DialError, FailReason, Identity, LinkEvent, LinkOptions, LinkReceiver, Priority,
    RuntimeChoice, SendError, dial,
};

async fn ends(receiver: &mut LinkReceiver) -> Option<CloseReason> {
    while let Some(event) = receiver.recv().await {
        if matches!(event, LinkEvent::Closed) {
            assert!(receiver.recv().await.is_none(), "nothing follows Closed");
            return receiver.close_reason();
        }
    }
    None
}

#[tokio::test]
async fn closing_ends_both_ends_and_fails_what_was_not_acknowledged() {
    let mut pair = pair(2).await;
    let receipt = pair.sender.send_bundle(Priority::Bulk, pattern(1000, 0)).await.unwrap();
    pair.sender.close();
    assert_eq!(receipt.acked().await, Err(SendError::Closed(CloseReason::Local)));
    assert_eq!(ends(&mut pair.receiver).await, Some(CloseReason::Local));
    assert_eq!(ends(&mut pair.incoming.receiver).await, Some(CloseReason::Remote));
    let refused = pair.incoming.sender.send_datagram("late".into());
    assert_eq!(refused, Err(SendError::Closed(CloseReason::Remote)));
    let refused = pair.sender.send_bundle(Priority::Control, pattern(1, 0)).await;
    assert_eq!(refused.unwrap_err(), SendError::Closed(CloseReason::Local));
}

#[tokio::test]
async fn dropping_every_handle_closes_for_the_peer() {
    let mut pair = pair(1).await;
    drop((pair.sender, pair.receiver));
    assert_eq!(ends(&mut pair.incoming.receiver).await, Some(CloseReason::Remote));
}

#[tokio::test]
async fn a_restarted_peer_is_not_taken_for_the_old_one() {
    let mut pair = pair(1).await;
    let addr = pair.listener.local_addrs()[0];
    // The old process is gone without a word: the path is cut while it goes.
    pair.gates[0].cut();
    drop((pair.incoming, pair.listener));
    let again = rebind(&pair.there, &pair.here, addr).await;
    pair.gates[0].reopen();
    assert_eq!(ends(&mut pair.receiver).await, Some(CloseReason::PeerRestarted));
    let (sender, _receiver) =
        dial(dial_config(&pair.here, &pair.there, &[pair.gates[0].addr])).await.unwrap();
    let mut incoming = again.accept().await.unwrap();
    let receipt = sender.send_bundle(Priority::Bulk, pattern(10, 1)).await.unwrap();
    assert_eq!(next(&mut incoming.receiver, bundle).await.1.into_bytes(), pattern(10, 1));
    receipt.acked().await.unwrap();
}

/// Binds once the old listener's socket is closed, which its driver task does in its own time.
async fn rebind(
    identity: &Identity,
    allowed: &Identity,
    addr: std::net::SocketAddr,
) -> rhizomorph_link::LinkListener {
    while std::net::UdpSocket::bind(addr).is_err() {
        tokio::task::yield_now().await;
    }
    listen_at(identity, allowed, vec![addr])
}

#[tokio::test]
async fn nobody_there_is_named_with_address_and_reason() {
    let (here, there) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let silent = std::net::UdpSocket::bind(crate::common::LOOPBACK).unwrap();
    let addr = silent.local_addr().unwrap();
    let mut config = dial_config(&here, &there, &[addr]);
    config.options.dial_timeout = std::time::Duration::from_millis(50);
    let error = dial(config).await.unwrap_err();
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
    let DialError::Unreachable(failures) = error else { panic!("{error}") };
    assert_eq!(failures[0].reason, FailReason::NoAnswer);
}

#[test]
fn a_dedicated_runtime_serves_callers_without_one() {
    let (here, there) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let caller = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let network = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = network.block_on(async { listen(&there, &here, 2) });
    let mut config = dial_config(&here, &there, listener.local_addrs());
    config.options = LinkOptions { runtime: RuntimeChoice::Dedicated, ..config.options };
    caller.block_on(async {
        let (sender, _receiver) = dial(config).await.unwrap();
        let mut incoming = listener.accept().await.unwrap();
        let receipt = sender.send_bundle(Priority::Bulk, pattern(1_000_000, 1)).await.unwrap();
        let (_, payload) = next(&mut incoming.receiver, bundle).await;
        assert!(payload.into_bytes() == pattern(1_000_000, 1));
        receipt.acked().await.unwrap();
    });
}
