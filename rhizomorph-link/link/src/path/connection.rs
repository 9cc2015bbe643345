//! Reading one connection: its datagrams, its stripes, its end.

use std::sync::Arc;
use std::time::Instant;

use quinn::Connection;
use rhizomorph_proto::codec::Datagram;
use rhizomorph_proto::ids::PathId;

use super::stripes_in;
use crate::close::CloseCode;
use crate::link::Link;

/// Starts the readers; they end with the connection.
pub(crate) fn start(link: &Arc<Link>, path: PathId, connection: Connection) {
    link.executor.spawn(read_datagrams(Arc::clone(link), connection.clone()));
    link.executor.spawn(accept_stripes(Arc::clone(link), connection.clone()));
    link.executor.spawn(wait_end(Arc::clone(link), path, connection));
}

async fn read_datagrams(link: Arc<Link>, connection: Connection) {
    while let Ok(frame) = connection.read_datagram().await {
        let at = Instant::now();
        match Datagram::decode(&frame) {
            Ok(datagram) => link.datagram(at, datagram),
            Err(error) => return CloseCode::Violation.close(&connection, &error.to_string()),
        }
    }
}

async fn accept_stripes(link: Arc<Link>, connection: Connection) {
    while let Ok(stream) = connection.accept_uni().await {
        link.executor.spawn(stripes_in::read(Arc::clone(&link), connection.clone(), stream));
    }
}

async fn wait_end(link: Arc<Link>, path: PathId, connection: Connection) {
    let error = connection.closed().await;
    link.connection_lost(path, &connection, &error);
}
