//! UDP sockets of a path: large buffers, and no send that the kernel would refuse.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Endpoint, Runtime, ServerConfig, TokioRuntime, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::SOCKET_BUFFER;
use crate::transport::{self, MtuPolicy};

/// Largest UDP payload of one send call over IPv4, all segments together.
const SEND_MAX: usize = 65_507;

/// A QUIC endpoint on its own socket. Must be called inside the runtime that is to drive it.
pub(crate) fn endpoint(
    local: SocketAddr,
    mtu: MtuPolicy,
    server: Option<ServerConfig>,
) -> io::Result<Endpoint> {
    let runtime = Arc::new(TokioRuntime);
    let inner = runtime.wrap_udp_socket(bind(local)?)?;
    let segments = (SEND_MAX / usize::from(mtu.largest())).max(1);
    let socket = Arc::new(CappedSocket { inner, segments });
    Endpoint::new_with_abstract_socket(transport::endpoint(mtu), server, socket, runtime)
}

fn bind(local: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The kernel gives what its limits allow; less costs throughput, not correctness.
    for (what, result) in [
        ("receive", socket.set_recv_buffer_size(SOCKET_BUFFER)),
        ("send", socket.set_send_buffer_size(SOCKET_BUFFER)),
    ] {
        if let Err(error) = result {
            tracing::debug!(%error, "{what} buffer of the socket at {local} left as it was");
        }
    }
    socket.bind(&local.into())?;
    Ok(socket.into())
}

/// Sends at most so many packets in one call that they fit one.
///
/// Quinn batches up to 10 packets whatever their size; 10 x 9000 bytes exceed what one call takes, the send fails
/// without an error, and the connection stalls.
#[derive(Debug)]
struct CappedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    segments: usize,
}

impl AsyncUdpSocket for CappedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.segments)
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
