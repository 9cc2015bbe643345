//! Throughput of one link on loopback: MB/s and CPU seconds per GB, sender and receiver together.
//!
//! `throughput [PATHS] [MTU] [STRIPE_KIB] [MIB]`: MTU is bytes of UDP payload per packet.

use std::error::Error;
use std::time::Instant;

use bytes::Bytes;
use rhizomorph_link::{
    AllowList, DialConfig, Identity, LinkEvent, LinkListener, LinkOptions, LinkReceiver, LinkSender,
    ListenConfig, MtuPolicy, PathSpec, Priority, RuntimeChoice, dial,
};

const BUNDLE: usize = 4 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    let number = |at: usize, otherwise: usize| numbers.get(at).copied().unwrap_or(otherwise);
    let (paths, mtu, stripe, mib) = (number(0, 1), number(1, 1452), number(2, 128), number(3, 2048));
    let options = LinkOptions {
        mtu: MtuPolicy::fixed(u16::try_from(mtu)?),
        stripe_bytes: stripe << 10,
        runtime: RuntimeChoice::Dedicated,
        ..LinkOptions::default()
    };
    let (sender, _events, _listener, receiver, _back) = connect(paths, &options).await?;
    let payload = pseudo_random(BUNDLE);
    let counting = tokio::spawn(receive(receiver));
    send(&sender, &payload, 64).await?;
    let (started, cpu_before) = (Instant::now(), cpu_seconds()?);
    send(&sender, &payload, (mib << 20) / BUNDLE).await?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds()? - cpu_before);
    let gigabytes = f64::from(u32::try_from(mib)?) * 1.048_576e-3;
    println!(
        "paths {paths} mtu {mtu} stripe {stripe} KiB: {:.0} MB/s, {:.2} CPU s/GB both ends",
        1e3 * gigabytes / seconds,
        cpu / gigabytes
    );
    for path in sender.paths() {
        println!(
            "  {}: sent {} MB, lost {} packets",
            path.id,
            path.bytes_sent / 1_000_000,
            path.packets_lost
        );
    }
    counting.abort();
    Ok(())
}

async fn send(sender: &LinkSender, payload: &Bytes, count: usize) -> Result<(), Box<dyn Error>> {
    let mut receipts = Vec::new();
    for _ in 0..count {
        receipts.push(sender.send_bundle(Priority::Bulk, payload.clone()).await?);
    }
    for receipt in receipts {
        receipt.acked().await?;
    }
    Ok(())
}

async fn receive(mut receiver: LinkReceiver) {
    while let Some(event) = receiver.recv().await {
        drop::<LinkEvent>(event);
    }
}

/// User and system time of this process so far, from the kernel's accounting (in hundredths of a second).
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').ok_or("unexpected /proc/self/stat")?.1;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

fn pseudo_random(len: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let word = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(word).flatten().take(len).collect()
}

type Ends = (LinkSender, LinkReceiver, LinkListener, LinkReceiver, LinkSender);

async fn connect(paths: usize, options: &LinkOptions) -> Result<Ends, Box<dyn Error>> {
    let (here, there) = (Identity::generate()?, Identity::generate()?);
    let listener = LinkListener::bind(ListenConfig {
        identity: there.clone(),
        allow: AllowList::only([here.peer_key()]),
        binds: vec!["127.0.0.1:0".parse()?; paths],
        options: options.clone(),
    })?;
    let (sender, receiver) = dial(DialConfig {
        identity: here,
        peer: there.peer_key(),
        paths: listener.local_addrs().iter().map(|addr| PathSpec::from(*addr)).collect(),
        label: Bytes::new(),
        options: options.clone(),
    })
    .await?;
    let incoming = listener.accept().await.ok_or("the listener ended")?;
    Ok((sender, receiver, listener, incoming.receiver, incoming.sender))
}
