//! A program for lab hosts that stands at the host's end of a VM's vsock device, at the Unix sockets of its VMM.
//!
//! `lab-vsock call SOCKET PORT BYTES` connects to a port of the guest, sends so many bytes and expects every one back.
//! `lab-vsock serve SOCKET` takes one connection the guest makes and sends back what it says until it is done.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::thread;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["call", socket, port, bytes] => call(socket, port, bytes),
        ["serve", socket] => serve(socket),
        _ => Err("say `call SOCKET PORT BYTES` or `serve SOCKET`".into()),
    };
    match done {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("lab-vsock: {error}");
            ExitCode::FAILURE
        }
    }
}

fn call(socket: &str, port: &str, bytes: &str) -> Result<String, Box<dyn Error>> {
    let sent: Vec<u8> =
        (0..bytes.parse::<u32>()?).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "CONNECT {port}")?;
    let mut replies = BufReader::new(stream.try_clone()?);
    let mut answer = String::new();
    replies.read_line(&mut answer)?;
    if !answer.starts_with("OK ") {
        return Err(format!("port {port}: {answer:?} instead of OK").into());
    }
    let outgoing = sent.clone();
    let sender = thread::spawn(move || stream.write_all(&outgoing));
    let mut received = vec![0; sent.len()];
    replies.read_exact(&mut received)?;
    sender.join().map_err(|_| "the sender failed")??;
    if received != sent {
        return Err("what came back is not what was sent".into());
    }
    Ok(format!("echoed {} bytes", received.len()))
}

fn serve(socket: &str) -> Result<String, Box<dyn Error>> {
    let listener = UnixListener::bind(socket)?;
    println!("waits at {socket}");
    let (mut stream, _) = listener.accept()?;
    let mut reader = stream.try_clone()?;
    let bytes = std::io::copy(&mut reader, &mut stream)?;
    stream.shutdown(Shutdown::Both)?;
    Ok(format!("served {bytes} bytes"))
}
