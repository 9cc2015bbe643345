//! Sending one stripe: one stream, ended when the peer's machine has all of it.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{SendStream, StoppedError, WriteError};
use rhizomorph_proto::codec::StripeHeader;
use rhizomorph_proto::ids::Priority;

use crate::close::StreamCode;
use crate::link::{Launch, Link};

/// How a stripe's sending ended.
enum Outcome {
    Delivered,
    Failed,
    Recalled,
}

pub(crate) async fn send(link: Arc<Link>, mut launch: Launch) {
    match attempt(&mut launch).await {
        Outcome::Delivered => link.stripe_delivered(launch.path, &launch.stripe),
        Outcome::Failed => link.stripe_failed(launch.path, &launch.stripe),
        // Whoever recalled it has done the bookkeeping.
        Outcome::Recalled => {}
    }
}

async fn attempt(launch: &mut Launch) -> Outcome {
    let opened = tokio::select! {
        opened = launch.connection.open_uni() => opened,
        _ = &mut launch.recalled => return Outcome::Recalled,
    };
    let Ok(mut stream) = opened else { return Outcome::Failed };
    let parts = std::mem::take(&mut launch.parts);
    let outcome = tokio::select! {
        outcome = deliver(&mut stream, &launch.stripe, parts) => outcome,
        _ = &mut launch.recalled => Outcome::Recalled,
    };
    if !matches!(outcome, Outcome::Delivered) {
        // Dropping an unfinished stream would finish it, and the peer would take a cut stripe for a whole one.
        // An error means that it is over already.
        let _ = stream.reset(StreamCode::Recalled.value());
    }
    outcome
}

async fn deliver(stream: &mut SendStream, stripe: &StripeHeader, parts: Vec<Bytes>) -> Outcome {
    // An error means that the stream is over, and writing says how.
    let _ = stream.set_priority(urgency(stripe.priority()));
    let head = Bytes::copy_from_slice(&stripe.encode());
    let mut chunks: Vec<Bytes> = std::iter::once(head).chain(parts).collect();
    let written = stream.write_all_chunks(&mut chunks).await;
    if let Err(error) = written {
        return stopped_means(
            matches!(error, WriteError::Stopped(code) if code == StreamCode::Duplicate.value()),
        );
    }
    if stream.finish().is_err() {
        return Outcome::Failed;
    }
    match stream.stopped().await {
        Ok(None) => Outcome::Delivered,
        Ok(Some(code)) => stopped_means(code == StreamCode::Duplicate.value()),
        Err(StoppedError::ConnectionLost(_) | StoppedError::ZeroRttRejected) => Outcome::Failed,
    }
}

fn stopped_means(duplicate: bool) -> Outcome {
    if duplicate { Outcome::Delivered } else { Outcome::Failed }
}

fn urgency(priority: Priority) -> i32 {
    match priority {
        Priority::Control => 1,
        Priority::Bulk => 0,
    }
}
