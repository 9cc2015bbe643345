//! A prompt for commands inside hosts.

use std::io::{self, BufRead, Write};

use mycelium_lab::{LabError, LabHost, LabNet};

const HELP: &str = "\
HOST PROGRAM ARGS..   run a program inside host number HOST (a static busybox is at /bin/busybox when installed)
pause HOST            freeze a host        cont HOST   let it go on
kill HOST             the host dies
unplug HOST           all its wires down   plug HOST   and up again
quit                  all hosts die and the network vanishes";

/// Takes commands until the end of input.
pub(crate) fn prompt(lab_net: &LabNet, hosts: &[LabHost]) -> anyhow::Result<()> {
    println!("{HELP}");
    let mut lines = io::stdin().lock().lines();
    loop {
        print!("lab> ");
        io::stdout().flush()?;
        let Some(line) = lines.next().transpose()? else { return Ok(()) };
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            ["quit"] => return Ok(()),
            words => obey(lab_net, hosts, words).unwrap_or_else(|error| println!("{error}")),
        }
    }
}

fn obey(lab_net: &LabNet, hosts: &[LabHost], words: &[&str]) -> Result<(), LabError> {
    let numbered =
        |word: &str| word.parse().ok().and_then(|number: usize| Some((number, hosts.get(number)?)));
    match words {
        [number, argv @ ..] if !argv.is_empty() && numbered(number).is_some() => {
            numbered(number).map_or(Ok(()), |(_, host)| run(host, argv))?;
        }
        [verb, number] => match (*verb, numbered(number)) {
            ("pause", Some((_, host))) => host.pause(),
            ("cont", Some((_, host))) => host.cont(),
            ("kill", Some((_, host))) => host.kill(),
            ("unplug", Some((number, _))) => lab_net.set_all_wires(number, false)?,
            ("plug", Some((number, _))) => lab_net.set_all_wires(number, true)?,
            _ => println!("{HELP}"),
        },
        _ => println!("{HELP}"),
    }
    Ok(())
}

fn run(host: &LabHost, argv: &[&str]) -> Result<(), LabError> {
    let output = host.exec(argv)?;
    print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        println!("ended with {:?}", output.status);
    }
    Ok(())
}
