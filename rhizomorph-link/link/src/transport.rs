//! QUIC's settings for a link, with what was measured.

use std::sync::Arc;

use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::limits::{
    CONNECTION_WINDOW, DATAGRAM_RECEIVE_BUFFER, DATAGRAM_SEND_BUFFER, IDLE_TIMEOUT, INITIAL_RTT, KEEP_ALIVE,
    STREAMS_PER_CONNECTION,
};

/// What QUIC guarantees every path carries, in bytes of UDP payload.
const MTU_GUARANTEED: u16 = 1200;

/// Largest UDP payload we take from the user: the largest that one send call can carry.
pub(crate) const MTU_MAX: u16 = 65_000;

/// How large packets may be, in bytes of UDP payload (that is, the interface's MTU less 28 for IPv4 or 48 for IPv6).
///
/// What bounds throughput is the work per packet: 9000-byte packets move more than twice as much per CPU second as
/// 1452-byte ones. So say so where the whole path is known to carry jumbo frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MtuPolicy {
    /// Size used from the first packet after the handshake on. A path that cannot carry it does not work at all.
    pub initial: u16,
    /// Size up to which larger packets are tried; `None` stays at `initial`. A failed try costs one lost packet.
    pub discover: Option<u16>,
}

impl Default for MtuPolicy {
    /// 1200 bytes at first, tried up to 1452: works on every path QUIC works on.
    fn default() -> Self {
        Self { initial: MTU_GUARANTEED, discover: Some(1452) }
    }
}

impl MtuPolicy {
    /// For paths known to carry packets of this size: used at once, nothing tried.
    pub fn fixed(size: u16) -> Self {
        Self { initial: size, discover: None }
    }

    /// For paths that may carry jumbo frames (interface MTU 9000): starts safe, finds out.
    pub fn jumbo() -> Self {
        Self { initial: MTU_GUARANTEED, discover: Some(8952) }
    }

    fn initial(self) -> u16 {
        self.initial.clamp(MTU_GUARANTEED, MTU_MAX)
    }

    /// The largest packet this policy can lead to.
    pub(crate) fn largest(self) -> u16 {
        self.discover.unwrap_or(0).clamp(self.initial(), MTU_MAX)
    }
}

/// Settings of one endpoint.
pub(crate) fn endpoint(mtu: MtuPolicy) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // Quinn allots receive buffers of this size times its batches: ask for what can come, not for the maximum.
    if let Err(error) = config.max_udp_payload_size(mtu.largest().max(1472)) {
        tracing::warn!(%error, "packet size left at QUIC's default");
    }
    config
}

/// Settings of one connection.
pub(crate) fn connection(mtu: MtuPolicy) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_PER_CONNECTION))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(CONNECTION_WINDOW.into())
        // Stripes one after another: half of one stripe is of no use to the receiver.
        .send_fairness(false)
        .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER)
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .initial_rtt(INITIAL_RTT)
        .initial_mtu(mtu.initial());
    set_discovery(&mut config, mtu);
    Arc::new(config)
}

fn set_discovery(config: &mut TransportConfig, mtu: MtuPolicy) {
    if mtu.largest() > mtu.initial() {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(mtu.largest());
        config.mtu_discovery_config(Some(discovery));
    } else {
        // A size the user vouches for must not be given up on a burst of losses; above 16383 quinn's handshake
        // cannot pad to it, so there it may.
        config.mtu_discovery_config(None).min_mtu(mtu.initial().min(MIN_MTU_MAX));
    }
}

/// Above this `min_mtu` quinn panics in the handshake (the length field of its padding).
const MIN_MTU_MAX: u16 = 16_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_stay_inside_what_quic_allows() {
        assert_eq!(MtuPolicy::fixed(100).largest(), MTU_GUARANTEED);
        assert_eq!(MtuPolicy::fixed(u16::MAX).largest(), MTU_MAX);
        assert_eq!(MtuPolicy { initial: 9000, discover: Some(1452) }.largest(), 9000);
        assert_eq!(MtuPolicy::jumbo().largest(), 8952);
    }
}
