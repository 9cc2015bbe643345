//! Peers that are not welcome: wrong keys, wrong versions, malformed and late frames.

use std::net::{Ipv4Addr, SocketAddr};

use crate::common::{bundle, dial_config, listen, next, pattern};
use quinn::{Connection, ConnectionError, Endpoint, VarInt};
use rhizomorph_link::{AllowList, DialError, FailReason, Identity, LinkListener, Priority, dial, tls};

const ALPN: &[u8] = b"rhizomorph";
const MALFORMED: u32 = 3;
const VERSION: u32 = 4;
const VIOLATION: u32 = 8;

fn identities() -> (Identity, Identity, Identity) {
    let make = || Identity::generate().unwrap();
    (make(), make(), make())
}

/// A QUIC connection to a listener with a valid key, its further behaviour up to the test.
async fn connect(listener: &LinkListener, here: &Identity, there: &Identity) -> (Endpoint, Connection) {
    let endpoint = Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let client = tls::quic_client_config(here, there.peer_key(), ALPN).unwrap();
    let addr = listener.local_addrs()[0];
    let connection = endpoint.connect_with(client, addr, tls::SERVER_NAME).unwrap().await.unwrap();
    (endpoint, connection)
}

async fn say(connection: &Connection, bytes: &[u8]) {
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
}

fn code(error: &ConnectionError) -> Option<VarInt> {
    match error {
        ConnectionError::ApplicationClosed(close) => Some(close.error_code),
        _ => None,
    }
}

fn hello() -> Vec<u8> {
    let mut frame = b"RHZh\x00\x01\x00\x18".to_vec();
    frame.extend([9; 16]);
    frame.extend([0, 0, 0, 0, 0, 1, 0, 0]);
    frame
}

async fn refused(error: DialError) -> FailReason {
    match error {
        DialError::Unreachable(mut failures) => failures.remove(0).reason,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_stranger_is_refused_and_told_so() {
    let (here, there, stranger) = identities();
    let listener = listen(&there, &here, 1);
    let error = dial(dial_config(&stranger, &there, listener.local_addrs())).await.unwrap_err();
    assert_eq!(refused(error).await, FailReason::KeyRefused);
}

#[tokio::test]
async fn a_listener_with_another_key_is_refused() {
    let (here, there, expected) = identities();
    let listener = listen(&there, &here, 1);
    let error = dial(dial_config(&here, &expected, listener.local_addrs())).await.unwrap_err();
    assert_eq!(refused(error).await, FailReason::WrongKey);
}

#[tokio::test]
async fn another_protocol_on_the_port_is_named() {
    let (here, there, _) = identities();
    let allow = AllowList::only([here.peer_key()]);
    let server = tls::quic_server_config(&there, allow, b"something-else").unwrap();
    let endpoint = Endpoint::server(server, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let addr = endpoint.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let _ = incoming.await;
        }
    });
    let error = dial(dial_config(&here, &there, &[addr])).await.unwrap_err();
    assert_eq!(refused(error).await, FailReason::NotALink);
}

#[tokio::test]
async fn another_version_is_refused_and_named_to_the_dialer() {
    let (here, there, _) = identities();
    let listener = listen(&there, &here, 1);
    let (_endpoint, connection) = connect(&listener, &here, &there).await;
    let mut frame = hello();
    frame[5] = 99;
    say(&connection, &frame).await;
    assert_eq!(code(&connection.closed().await), Some(VarInt::from_u32(VERSION)));
}

#[tokio::test]
async fn a_dialer_meeting_another_version_says_so() {
    let (here, there, _) = identities();
    let server = tls::quic_server_config(&there, AllowList::only([here.peer_key()]), ALPN).unwrap();
    let endpoint = Endpoint::server(server, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let addr = endpoint.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            if let Ok(connection) = incoming.await {
                connection.close(VarInt::from_u32(VERSION), b"version 1, this end speaks 2");
            }
        }
    });
    let error = dial(dial_config(&here, &there, &[addr])).await.unwrap_err();
    assert_eq!(refused(error).await, FailReason::Version("version 1, this end speaks 2".into()));
}

#[tokio::test]
async fn malformed_and_oversized_hellos_close_only_their_connection() {
    let (here, there, _) = identities();
    let listener = listen(&there, &here, 1);
    let truncated = &hello()[..20];
    for bytes in [&b""[..], &b"GET / HTTP/1.1\r\n\r\n"[..], truncated, &[0; 10_000]] {
        let (_endpoint, connection) = connect(&listener, &here, &there).await;
        say(&connection, bytes).await;
        assert_eq!(
            code(&connection.closed().await),
            Some(VarInt::from_u32(MALFORMED)),
            "{} bytes",
            bytes.len()
        );
    }
    let (sender, _receiver) = dial(dial_config(&here, &there, listener.local_addrs())).await.unwrap();
    let mut incoming = listener.accept().await.unwrap();
    sender.send_bundle(Priority::Control, pattern(9, 9)).await.unwrap();
    assert_eq!(next(&mut incoming.receiver, bundle).await.1.into_bytes(), pattern(9, 9));
}

#[tokio::test]
async fn frames_that_break_the_rules_after_the_hello_close_the_connection() {
    let (here, there, _) = identities();
    let listener = listen(&there, &here, 1);
    let too_long = {
        let mut stripe = vec![1, 1, 1, 0, 0, 0, 0, 0];
        stripe.extend(0u64.to_be_bytes());
        stripe.extend(10u32.to_be_bytes());
        stripe.extend(16_384u32.to_be_bytes());
        stripe.extend([0; 11]);
        stripe
    };
    let far_ahead = {
        let mut stripe = too_long.clone();
        stripe[8..16].fill(0xff);
        stripe
    };
    for (number, stripe) in (1..).zip([vec![0xff; 64], too_long, far_ahead]) {
        let (_endpoint, connection) = connect(&listener, &here, &there).await;
        let mut frame = hello();
        frame[8] = number;
        say(&connection, &frame).await;
        let mut stream = connection.open_uni().await.unwrap();
        let _ = stream.write_all(&stripe).await;
        let _ = stream.finish();
        assert_eq!(code(&connection.closed().await), Some(VarInt::from_u32(VIOLATION)), "stripe {number}");
    }
    let (_endpoint, connection) = connect(&listener, &here, &there).await;
    say(&connection, &hello()).await;
    let incoming = listener.accept().await.unwrap();
    connection.send_datagram(vec![7; 3].into()).unwrap();
    assert_eq!(code(&connection.closed().await), Some(VarInt::from_u32(VIOLATION)));
    assert_eq!(incoming.sender.close_reason(), None, "the link outlives its connection");
}
