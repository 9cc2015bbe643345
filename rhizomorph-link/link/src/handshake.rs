//! The hello exchange on a fresh connection, and what its failures mean.

use std::time::Duration;

use quinn::{Connection, ConnectionError, ReadToEndError, TransportErrorCode};
use rhizomorph_proto::codec::{FrameError, Hello, Welcome};
use rhizomorph_proto::limits::HELLO_MAX;

use crate::close::CloseCode;
use crate::error::FailReason;

/// The protocol's name in TLS; its version is the hello's.
pub(crate) const ALPN: &[u8] = b"rhizomorph";

/// TLS alert "no application protocol" (RFC 7301).
const ALERT_NO_ALPN: u8 = 120;

/// Dialer's side: says hello and waits for the welcome.
pub(crate) async fn greet(connection: &Connection, hello: &Hello) -> Result<Welcome, FailReason> {
    let said = say(connection, hello).await;
    match said {
        Ok(answer) => Welcome::decode(&answer).map_err(|error| FailReason::Other(error.to_string())),
        // A refusal closes the connection, and the close says why; the stream only says that it ended.
        Err(reason) => Err(connection.close_reason().as_ref().map_or(reason, explain)),
    }
}

async fn say(connection: &Connection, hello: &Hello) -> Result<Vec<u8>, FailReason> {
    let other = |error: &dyn std::error::Error| FailReason::Other(error.to_string());
    let frame = hello.encode().map_err(|error| other(&error))?;
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| explain(&error))?;
    send.write_all(&frame).await.map_err(|error| other(&error))?;
    send.finish().map_err(|error| other(&error))?;
    recv.read_to_end(HELLO_MAX).await.map_err(|error| other(&error))
}

/// Why a listener did not hear a proper hello.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelloError {
    #[error("no whole hello within {} s", .0.as_secs())]
    Late(Duration),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the hello is longer than {HELLO_MAX} bytes")]
    TooLong,
    #[error("the connection ended before its hello")]
    Ended,
}

impl HelloError {
    /// What to tell the peer.
    pub(crate) fn code(&self) -> CloseCode {
        match self {
            Self::Late(_) => CloseCode::Late,
            Self::Frame(FrameError::Version(..)) => CloseCode::Version,
            Self::Frame(_) | Self::TooLong | Self::Ended => CloseCode::Malformed,
        }
    }
}

/// Listener's side: waits for the hello; the stream it came on is for the welcome.
pub(crate) async fn listen(connection: &Connection) -> Result<(Hello, quinn::SendStream), HelloError> {
    let (send, mut recv) = connection.accept_bi().await.map_err(|_| HelloError::Ended)?;
    let frame = recv.read_to_end(HELLO_MAX).await.map_err(|error| match error {
        ReadToEndError::TooLong => HelloError::TooLong,
        ReadToEndError::Read(_) => HelloError::Ended,
    })?;
    Ok((Hello::decode(&frame)?, send))
}

/// What the end of a connection says about the peer.
pub(crate) fn explain(error: &ConnectionError) -> FailReason {
    if let Some((code, text)) = CloseCode::of(error) {
        return match code {
            CloseCode::Version => FailReason::Version(text),
            CloseCode::UnknownLink => FailReason::Forgotten,
            CloseCode::LinkClosed
            | CloseCode::Replaced
            | CloseCode::Malformed
            | CloseCode::Limit
            | CloseCode::StaleAttempt
            | CloseCode::Violation
            | CloseCode::Late => FailReason::Refused(text),
        };
    }
    match error {
        ConnectionError::TimedOut => FailReason::NoAnswer,
        ConnectionError::TransportError(error) if alert(error.code).is_some() => FailReason::WrongKey,
        ConnectionError::ConnectionClosed(close) => match alert(close.error_code) {
            Some(ALERT_NO_ALPN) => FailReason::NotALink,
            Some(_) => FailReason::KeyRefused,
            None => FailReason::Other(error.to_string()),
        },
        other => FailReason::Other(other.to_string()),
    }
}

/// The TLS alert in a transport error code, if it is one (RFC 9001, section 4.8).
fn alert(code: TransportErrorCode) -> Option<u8> {
    let code = u64::from(code);
    (0x100..0x200).contains(&code).then(|| code.to_le_bytes()[0])
}
