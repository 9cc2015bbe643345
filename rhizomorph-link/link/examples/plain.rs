//! What `throughput` is measured against: one plain QUIC connection, one stream, the same keys, socket buffers and
//! packet size, nothing of ours above it.
//!
//! `plain [MTU] [MIB]`: MTU is bytes of UDP payload per packet.

use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use quinn::{Endpoint, EndpointConfig, TokioRuntime, TransportConfig, VarInt};
use rhizomorph_link::{AllowList, Identity, tls};
use tokio::sync::oneshot;

type Failure = Box<dyn Error + Send + Sync>;

const WRITE: usize = 1 << 20;
const WINDOW: u32 = 4 << 20;

fn main() -> Result<(), Failure> {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    let number = |at: usize, otherwise: usize| numbers.get(at).copied().unwrap_or(otherwise);
    let (mtu, mib) = (u16::try_from(number(0, 1452))?, number(1, 2048));
    let (here, there) = (Identity::generate()?, Identity::generate()?);
    let mut server = tls::quic_server_config(&there, AllowList::only([here.peer_key()]), b"plain")?;
    server.transport_config(transport(mtu));
    let (bound, addr) = oneshot::channel();
    let receiving = thread::spawn(move || runtime()?.block_on(receive(server, mtu, bound)));
    let mut client = tls::quic_client_config(&here, there.peer_key(), b"plain")?;
    client.transport_config(transport(mtu));
    runtime()?.block_on(async { send(client, mtu, addr.await?, mib).await })?;
    receiving.join().map_err(|_| "the receiver panicked")?
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn transport(mtu: u16) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config.initial_mtu(mtu).min_mtu(mtu).mtu_discovery_config(None);
    config.receive_window(VarInt::from_u32(WINDOW)).stream_receive_window(VarInt::from_u32(WINDOW));
    config.send_window(WINDOW.into()).datagram_receive_buffer_size(None);
    // Packets so large that ten of them exceed one send call would stall the connection.
    config.enable_segmentation_offload(usize::from(mtu) * 10 < 65_507);
    Arc::new(config)
}

fn endpoint(server: Option<quinn::ServerConfig>, mtu: u16) -> Result<Endpoint, Failure> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let buffers = socket2::SockRef::from(&socket);
    buffers.set_recv_buffer_size(WINDOW as usize)?;
    buffers.set_send_buffer_size(WINDOW as usize)?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(mtu.max(1472))?;
    Ok(Endpoint::new(config, server, socket, Arc::new(TokioRuntime))?)
}

async fn receive(
    server: quinn::ServerConfig,
    mtu: u16,
    bound: oneshot::Sender<SocketAddr>,
) -> Result<(), Failure> {
    let endpoint = endpoint(Some(server), mtu)?;
    bound.send(endpoint.local_addr()?).map_err(|_| "the sender is gone")?;
    let connection = endpoint.accept().await.ok_or("no connection")?.await?;
    let mut stream = connection.accept_uni().await?;
    let mut place = vec![1; WRITE];
    while let Some(chunk) = stream.read_chunk(usize::MAX, false).await? {
        let at = usize::try_from(chunk.offset)? % (WRITE / 2);
        let len = chunk.bytes.len().min(WRITE - at);
        place[at..at + len].copy_from_slice(&chunk.bytes[..len]);
    }
    connection.close(VarInt::from_u32(0), b"done");
    endpoint.wait_idle().await;
    Ok(())
}

async fn send(client: quinn::ClientConfig, mtu: u16, addr: SocketAddr, mib: usize) -> Result<(), Failure> {
    let endpoint = endpoint(None, mtu)?;
    let connection = endpoint.connect_with(client, addr, tls::SERVER_NAME)?.await?;
    let mut stream = connection.open_uni().await?;
    let payload = Bytes::from(vec![0x5a; WRITE]);
    for _ in 0..64 {
        stream.write_chunk(payload.clone()).await?;
    }
    let (started, cpu_before) = (Instant::now(), cpu_seconds()?);
    for _ in 0..mib {
        stream.write_chunk(payload.clone()).await?;
    }
    stream.finish()?;
    connection.closed().await;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds()? - cpu_before);
    let gigabytes = f64::from(u32::try_from(mib)?) * 1.048_576e-3;
    println!(
        "plain QUIC, mtu {mtu}: {:.0} MB/s, {:.2} CPU s/GB both ends, lost {} packets",
        1e3 * gigabytes / seconds,
        cpu / gigabytes,
        connection.stats().path.lost_packets
    );
    Ok(())
}

/// User and system time of this process so far, from the kernel's accounting (in hundredths of a second).
fn cpu_seconds() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').ok_or("unexpected /proc/self/stat")?.1;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}
