//! Stock Linux between two emulated hosts, each with its own kernel and clock.

use system_tests::{demo, number, skip, whole_suite};

#[test]
fn debian_survives_the_loss_of_its_host() {
    if !whole_suite() {
        return skip("takeover between emulated hosts: cargo xtask test --suite lab");
    }
    let Some(verdict) = demo(&["--guest", "linux"]) else { return };
    assert_eq!(number(&verdict, "/lost_acked_ops"), 0.0);
    assert_eq!(number(&verdict, "/repeated_ops"), 0.0);
    assert_eq!(number(&verdict, "/generation"), 2.0);
    assert_eq!(verdict["digest_match"], true);
}

#[test]
fn debian_survives_a_host_that_freezes_and_comes_back() {
    if whole_suite()
        && let Some(verdict) = demo(&["--guest", "linux", "--fault", "stop"])
    {
        assert_eq!(number(&verdict, "/stale_frames"), 0.0);
    }
}
