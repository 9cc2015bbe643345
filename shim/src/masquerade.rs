//! The network of a group's VM: the same in every pod, behind the pod's own address.
//!
//! ```text
//!   VM's card ── tap "endo0" ── routes, nft: pod's address <──> guest's ── eth0 ── CNI's network
//!   169.254.77.2   169.254.77.1
//! ```
//! A guest keeps its address when it goes on in another pod, and every pod has an address of its own: so the guest's is an
//! inner one. The way to it is a fixed neighbour entry: while the guest runs elsewhere nobody answers here, whatever is sent.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};

use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::{Handle, LinkUnspec};

use crate::net::{self, Interface, Mac, NetError, TAP, Taken};

/// Link-local, because no route of a cluster leads there; a network of four addresses, to be in nobody's way.
const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 1);
const PREFIX: u8 = 30;
const GUEST_MAC: Mac = Mac([0x02, 0x6d, 0x79, 0x63, 0x00, 0x02]);
/// The guest remembers it through a takeover.
const GATEWAY_MAC: Mac = Mac([0x02, 0x6d, 0x79, 0x63, 0x00, 0x01]);

/// Connects a VM to the network of a pod that it shares with the pods of its group.
pub(crate) async fn share(netns: &Path) -> Result<Taken, NetError> {
    let (tap, handle) = net::enter(netns).await?;
    let links = net::links(&handle).await?;
    let index = net::tap_of(&links)?;
    let (pods, address, _) = net::with_address(&handle, &links, index).await?;
    set_up_tap(&handle, index, net::mtu(pods)).await?;
    net::inside(netns, move || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(NetError::Forward)?;
        translate(address)
    })
    .await?;
    let interface = Interface { mac: GUEST_MAC, address: GUEST, prefix: PREFIX, gateway: Some(GATEWAY) };
    Ok(Taken { tap, interface })
}

async fn set_up_tap(handle: &Handle, index: u32, mtu: u32) -> Result<(), NetError> {
    let fail = |doing| move |source| NetError::Netlink { doing, source };
    let link = LinkUnspec::new_with_index(index).address(GATEWAY_MAC.0.to_vec()).mtu(mtu).up().build();
    handle.link().set(link).execute().await.map_err(fail("set the tap up"))?;
    let address = handle.address().add(index, IpAddr::V4(GATEWAY), PREFIX);
    address.replace().execute().await.map_err(fail("give the tap its address"))?;
    let neighbour = handle.neighbours().add(index, IpAddr::V4(GUEST)).link_layer_address(&GUEST_MAC.0);
    let neighbour = neighbour.state(NeighbourState::Permanent).replace();
    neighbour.execute().await.map_err(fail("fix the guest's Ethernet address"))
}

/// Has the kernel exchange the pod's address for the guest's. What an earlier VM of this pod left is replaced.
fn translate(pods: Ipv4Addr) -> Result<(), NetError> {
    let fail = |error: std::io::Error| NetError::Translate(error.to_string());
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut nft = nft.spawn().map_err(fail)?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(rules(pods).as_bytes()).map_err(fail)?;
    }
    let ended = nft.wait_with_output().map_err(fail)?;
    if !ended.status.success() {
        return Err(NetError::Translate(String::from_utf8_lossy(&ended.stderr).trim().to_owned()));
    }
    Ok(())
}

fn rules(pods: Ipv4Addr) -> String {
    let tap = TAP.to_string_lossy();
    // To name the table before deleting it makes it be there. What belongs to no connection is dropped: the pod's own stack
    // would answer it with a reset, and a guest that has moved in knows it. Segments fit the pod's MTU, of which the guest
    // is not told.
    format!(
        "table ip endophyte\n\
         delete table ip endophyte\n\
         table ip endophyte {{\n\
         chain in {{ type nat hook prerouting priority -100; ip daddr {pods} dnat to {GUEST}; }}\n\
         chain out {{ type nat hook postrouting priority 100; ip saddr {GUEST} oifname != \"{tap}\" snat to {pods}; }}\n\
         chain own {{ type filter hook input priority 0; ct state invalid drop; }}\n\
         chain through {{ type filter hook forward priority 0; ct state invalid drop; \
         ip daddr {GUEST} oifname != \"{tap}\" drop; tcp flags syn tcp option maxseg size set rt mtu; }}\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::net::UdpSocket;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::net::tests::{LIKE_CNI, pod};

    /// Of the header before each frame, as long as nobody has asked for another size.
    const HEADER_BYTES: usize = 10;

    #[tokio::test]
    async fn a_guest_has_one_address_behind_every_pods_own() {
        let Some(netns) = pod(LIKE_CNI) else { return };
        for _ in 0..2 {
            let taken = share(&netns.0).await.unwrap();
            assert_eq!((taken.interface.address, taken.interface.prefix), (GUEST, 30));
            let shown = |words: &[&str]| {
                let mut inside = Command::new("nsenter");
                inside.arg(format!("--net={}", netns.0.display())).args(words);
                String::from_utf8_lossy(&inside.output().unwrap().stdout).into_owned()
            };
            let neighbours = shown(&["ip", "neigh", "show", "dev", "endo0"]);
            assert!(neighbours.contains("02:6d:79:63:00:02 PERMANENT"), "{neighbours}");
            assert!(shown(&["ip", "link", "show", "endo0"]).contains("mtu 1400"));
            assert_eq!(shown(&["nft", "list", "ruleset"]).matches("dnat to 169.254.77.2").count(), 1);
            // What is sent to the guest reaches the tap, behind a header, though nobody has answered anything.
            let send = || {
                let socket = UdpSocket::bind("0.0.0.0:0").map_err(NetError::Tap)?;
                socket.send_to(b"hello", (GUEST, 9)).map(drop).map_err(NetError::Tap)
            };
            net::inside(&netns.0, send).await.unwrap();
            let mut frame = [0; 2000];
            let mut tap = File::from(taken.tap);
            loop {
                let mut wait = [PollFd::new(&tap, PollFlags::IN)];
                let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
                assert_eq!(poll(&mut wait, Some(&patience)), Ok(1), "no frame for the guest");
                let n = tap.read(&mut frame).unwrap();
                let frame = &frame[HEADER_BYTES..n];
                if frame.starts_with(&GUEST_MAC.0) && frame[12..14] == [8, 0] {
                    break;
                }
            }
        }
    }
}
