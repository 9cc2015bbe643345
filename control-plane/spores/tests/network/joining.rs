//! Who is let in, and what the others are told.

use std::time::Duration;

use crate::common::*;
use mycelium_identity::{Claims, Invitation, NetworkId, NodeFolder};
use mycelium_spores::{Clock, Spore, StartError};

const HOUR_NS: u64 = 3_600_000_000_000;

fn refusal(joined: Result<Spore, StartError>) -> String {
    match joined {
        Err(error @ StartError::NotLetIn(_)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_is_good_once() {
    let lab = Lab::new();
    let a = lab.found("a").await;
    let invitation = a.invite(Duration::from_secs(60)).unwrap().to_string();
    let _b = Spore::join(lab.config("b").await, &invitation).await.unwrap();
    let text = refusal(Spore::join(lab.config("c").await, &invitation).await);
    assert!(text.contains("has been used") && text.contains("mycelium network invite"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_invitation_says_when_it_ended() {
    let lab = Lab::new();
    let a = lab.found("a").await;
    let invitation = a.invite(Duration::ZERO).unwrap().to_string();
    let text = refusal(Spore::join(lab.config("b").await, &invitation).await);
    assert!(text.contains("expired") && text.contains("mycelium network invite"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_to_another_network_is_refused() {
    let lab = Lab::new();
    let first = lab.found("a").await;
    let (issued_at, addr) = (Clock::system().unix_s(), first.addrs()[0]);
    first.clone().shutdown().await;
    drop(first);
    // The same node, as if it had been in another network when it invited.
    let folder = until("the folder", || async { NodeFolder::open(&lab.path("a")).ok() }).await;
    let (network, inviter) = (NetworkId([9; 32]), folder.identity().peer_key());
    let claims =
        Claims { network, inviter, addrs: vec![addr], nonce: [1; 16], issued_at, expires_at: issued_at + 60 };
    let invitation = Invitation::sign(folder.identity(), claims).unwrap();
    drop(folder);
    let a = lab.resume("a", addr).await;
    let text = refusal(Spore::join(lab.config("b").await, &invitation.to_string()).await);
    assert!(text.contains(&network.short()) && text.contains(&a.network().short()), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_an_hour_off_is_told_which_way_and_what_to_do() {
    let lab = Lab::new();
    let a = lab.found("a").await;
    let off = |ahead: bool| {
        let now = Clock::system();
        Clock::from_fn(move || if ahead { now.wall_ns() + HOUR_NS } else { now.wall_ns() - HOUR_NS })
    };
    for (ahead, word) in [(true, "ahead of"), (false, "behind")] {
        let mut config = lab.config("b").await;
        config.clock = off(ahead);
        let invitation = a.invite(Duration::from_secs(60)).unwrap().to_string();
        let text = refusal(Spore::join(config, &invitation).await);
        assert!(text.contains(word) && text.contains("NTP") && text.contains(" s "), "{text}");
    }
    assert_eq!(a.nodes().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_once_and_a_member_does_not_join_again() {
    let lab = Lab::new();
    let a = lab.found("a").await;
    let mut config = lab.config("b").await;
    config.name = "a".into();
    let invitation = a.invite(Duration::from_secs(60)).unwrap().to_string();
    let text = refusal(Spore::join(config, &invitation).await);
    assert!(text.contains("--name"), "{text}");
    let b = Spore::join(lab.config("b").await, &invitation).await.unwrap();
    b.shutdown().await;
    let again = Spore::join(lab.config("b").await, &invitation).await;
    assert!(matches!(again, Err(StartError::InNetwork(_))), "{again:?}");
}
