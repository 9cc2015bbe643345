//! Receiving one stripe into a buffer of its own.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{Connection, ReadError, RecvStream};
use rhizomorph_proto::codec::{FrameError, STRIPE_HEADER_LEN, StripeHeader};
use rhizomorph_proto::reassembly::{Offer, ReassemblyError};

use crate::close::{CloseCode, StreamCode};
use crate::link::Link;
use crate::pool::BufferPool;

/// Why a stripe was not taken in.
#[derive(Debug, thiserror::Error)]
enum StripeError {
    /// Recalled, or the connection ended: not a fault.
    #[error("the stream ended early")]
    Ended,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Reassembly(#[from] ReassemblyError),
    #[error(
        "a stripe has more or fewer bytes than its header says; the sender is faulty, update or remove it"
    )]
    Length,
}

impl From<ReadError> for StripeError {
    fn from(_: ReadError) -> Self {
        Self::Ended
    }
}

pub(crate) async fn read(link: Arc<Link>, connection: Connection, mut stream: RecvStream) {
    match take_in(&link, &mut stream).await {
        Ok(()) | Err(StripeError::Ended) => {}
        Err(error) => {
            tracing::warn!(link = %link.id, peer = %link.peer, %error, "connection closed");
            CloseCode::Violation.close(&connection, &error.to_string());
        }
    }
}

async fn take_in(link: &Link, stream: &mut RecvStream) -> Result<(), StripeError> {
    let mut head = [0; STRIPE_HEADER_LEN];
    stream.read_exact(&mut head).await.map_err(|_| StripeError::Ended)?;
    let stripe = StripeHeader::decode(&head)?;
    if link.offer(&stripe)? != Offer::Wanted {
        // Fails only if all of it is here already.
        let _ = stream.stop(StreamCode::Duplicate.value());
        return Ok(());
    }
    let bytes = read_body(&link.pool, &stripe, stream).await?;
    Ok(link.insert(&stripe, bytes)?)
}

/// Reads the rest of the stream in whatever order it comes, straight to its place.
async fn read_body(
    pool: &BufferPool,
    stripe: &StripeHeader,
    stream: &mut RecvStream,
) -> Result<Bytes, StripeError> {
    let mut buffer = pool.get(stripe.len());
    let mut filled = 0;
    while let Some(chunk) = stream.read_chunk(usize::MAX, false).await? {
        let offset = usize::try_from(chunk.offset).map_err(|_| StripeError::Length)?;
        let start = offset.checked_sub(STRIPE_HEADER_LEN).ok_or(StripeError::Length)?;
        let end = start.checked_add(chunk.bytes.len()).ok_or(StripeError::Length)?;
        let place = buffer.as_mut().get_mut(start..end).ok_or(StripeError::Length)?;
        place.copy_from_slice(&chunk.bytes);
        filled += chunk.bytes.len();
    }
    if filled != stripe.len() {
        return Err(StripeError::Length);
    }
    Ok(buffer.freeze())
}
