//! Guests whose processor is one of a level, not the host's own.

use crate::native::Native;

const LEVELS: [&str; 4] = ["x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4"];

#[test]
fn a_guest_runs_and_moves_at_the_levels_that_this_host_has() {
    let Some(native) = Native::new() else { return };
    for level in LEVELS {
        let spec = format!("vcpus = 2\ncpu = \"{level}\"\n");
        let first = match native.try_build("heartbeat=10", &spec) {
            Ok(first) => first,
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains(level) && said.contains("it lacks"), "{said}");
                println!("{said}");
                continue;
            }
        };
        first.machine.boot().unwrap();
        first.machine.resume().unwrap();
        first.console.wait_text(0, "tick 3 ");
        let taken = first.take();
        let second = native.build("heartbeat=10", &spec);
        assert_eq!(first.machine.fingerprint().diff(&second.machine.fingerprint()), Vec::<String>::new());
        second.go_on(&taken);
        second.console.wait_text(0, "tick 50 ");
    }
}

#[test]
fn machines_of_two_kinds_of_processor_name_the_features_that_differ() {
    let Some(native) = Native::new() else { return };
    let host = native.build("", "");
    let level = native.build("", "cpu = \"x86-64-v1\"\n");
    let differences = host.machine.fingerprint().diff(&level.machine.fingerprint()).join("\n");
    assert!(differences.contains("cpu: host here, x86-64-v1 there"), "{differences}");
    assert!(differences.contains("processor features missing there:"), "{differences}");
    assert!(differences.contains("cx16"), "{differences}");
}
