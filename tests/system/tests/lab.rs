//! Stock Linux between two emulated hosts, each with its own kernel and clock.

use system_tests::{demo, number, skip, whole_suite};

#[test]
fn debian_survives_the_loss_of_its_host() {
    if !whole_suite() {
        return skip("takeovers between emulated hosts: cargo xtask test --suite lab");
    }
    let Some(verdict) = demo(&["--guest", "linux"]) else { return };
    assert_eq!(number(&verdict, "/lost_acked_ops"), 0.0);
    assert_eq!(number(&verdict, "/repeated_ops"), 0.0);
    assert_eq!(number(&verdict, "/generation"), 2.0);
    assert_eq!(verdict["digest_match"], true);
    assert_eq!(number(&verdict, "/guest_clocks/backward"), 0.0);
    assert!(number(&verdict, "/console_ticks/1") > number(&verdict, "/console_ticks/0"));
}

/// A host that is still there, or there again, after it was given up.
fn deposed_by(fault: &str) {
    if !whole_suite() {
        return skip("takeovers between emulated hosts: cargo xtask test --suite lab");
    }
    let Some(verdict) = demo(&["--guest", "linux", "--fault", fault]) else { return };
    assert_eq!(number(&verdict, "/stale_frames"), 0.0);
    assert_eq!(number(&verdict, "/deposed_exit"), 6.0);
}

#[test]
fn debian_goes_on_elsewhere_when_its_host_is_cut_off() {
    deposed_by("link");
}

#[test]
fn debian_survives_a_host_that_freezes_and_comes_back() {
    deposed_by("stop");
}
