//! The entry point of fuzz targets.

use crate::{Engine, NoHost, Session};

/// Treats `data` as a schedule and a byte stream: the first byte chooses the size of the pieces, the rest arrives
/// at a fresh server in such pieces. Panics if an invariant of the engine breaks.
pub fn fuzz_resp(data: &[u8]) {
    let Some((size, mut rest)) = data.split_first() else { return };
    let mut engine = Engine::new(NoHost, 1 << 16);
    let mut session = Session::new();
    while !rest.is_empty() && !session.is_finished() {
        let piece = &rest[..rest.len().min(usize::from(*size) + 1)];
        let taken = session.feed(piece);
        rest = &rest[taken..];
        session.advance(&mut engine);
        session.mark_sent(session.output().len());
    }
    assert!(engine.store().bytes() <= engine.store().limit_bytes(), "the store outgrew its limit");
    assert_eq!(engine.store().digest(), engine.store().recomputed_digest(), "the running digest went astray");
}
