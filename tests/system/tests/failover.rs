//! A protected pair on this machine's KVM loses its active node, in every way there is so far.

use serde_json::Value;
use system_tests::{demo, has_kvm, number, whole_suite};

/// What every takeover must show, whatever the fault.
fn check(verdict: &Value) {
    assert_eq!(number(verdict, "/lost_acked_ops"), 0.0);
    assert_eq!(number(verdict, "/repeated_ops"), 0.0);
    assert_eq!(number(verdict, "/generation"), 2.0);
    assert_eq!(number(verdict, "/stale_frames"), 0.0);
    assert_eq!(number(verdict, "/tcp_connections/total"), number(verdict, "/tcp_connections/survived"));
    assert!(number(verdict, "/tcp_connections/total") >= 8.0);
    assert!(number(verdict, "/acked_ops_generation_2") >= 500.0);
    assert!(number(verdict, "/epochs_committed") > 100.0);
    assert_eq!(verdict["digest_match"], true);
}

fn rounds() -> u64 {
    if whole_suite() { 5 } else { 1 }
}

fn lose_by(fault: &str, deposed_exit: Option<f64>) {
    if !has_kvm() {
        return;
    }
    for seed in 1..=rounds() {
        let seed = seed.to_string();
        let Some(verdict) = demo(&["--fault", fault, "--seed", &seed]) else { return };
        check(&verdict);
        assert_eq!(verdict["deposed_exit"].as_f64(), deposed_exit, "{fault}");
    }
}

#[test]
fn a_killed_host_is_taken_over() {
    lose_by("kill", None);
}

#[test]
fn a_stopped_primary_says_nothing_when_it_is_continued() {
    lose_by("stop", Some(6.0));
}

#[test]
fn a_primary_cut_off_from_its_replica_gives_way() {
    lose_by("link", Some(6.0));
}

/// Strikes while the active holds an epoch in each phase, or in CI in one; afterwards the VM is protected again and loses its host
/// once more.
fn strikes_in_every_phase(fault: &str, slice: &str) {
    if !has_kvm() {
        return;
    }
    let is_loss = ["kill", "stop", "link"].contains(&fault);
    for (seed, phase) in PHASES.iter().enumerate().filter(|(_, phase)| whole_suite() || **phase == slice) {
        let seed = (seed + 11).to_string();
        let losses = if is_loss { "2" } else { "1" };
        let words = ["--fault", fault, "--phase", phase, "--losses", losses, "--seed", &seed];
        let Some(verdict) = demo(&words) else { return };
        check(&verdict);
        assert_eq!(verdict["phase"], **phase);
        assert_eq!(number(&verdict, "/losses").to_string(), losses);
        assert_eq!(verdict["failures"].as_array().map(Vec::len), Some(0), "{}", verdict["failures"]);
    }
}

const PHASES: [&str; 5] = ["ending", "paused", "sending", "acked", "releasing"];

#[test]
fn a_host_is_killed_in_every_phase_of_an_epoch() {
    strikes_in_every_phase("kill", "paused");
}

#[test]
fn a_host_is_stopped_and_continued_in_every_phase_of_an_epoch() {
    strikes_in_every_phase("stop", "releasing");
}

#[test]
fn a_pair_is_parted_in_every_phase_of_an_epoch() {
    strikes_in_every_phase("link", "sending");
}

#[test]
fn an_active_is_parted_from_the_arbiter_in_every_phase_of_an_epoch() {
    strikes_in_every_phase("arbiter-link", "ending");
}

#[test]
fn a_replica_is_killed_in_every_phase_of_an_epoch() {
    strikes_in_every_phase("replica", "sending");
}

#[test]
fn an_arbiter_is_killed_and_restarted_in_every_phase_of_an_epoch() {
    strikes_in_every_phase("arbiter", "acked");
}

/// For maintenance of its host, and of the next one.
#[test]
fn a_guest_is_handed_over_under_load() {
    if !has_kvm() {
        return;
    }
    for seed in 1..=rounds() {
        let Some(verdict) = demo(&["--fault", "handover", "--seed", &seed.to_string()]) else { return };
        check(&verdict);
        assert_eq!(verdict["deposed_exit"], 0, "the old process has ended well");
        println!("handed over: {}", verdict["failover_ms"]);
    }
}

#[test]
fn a_network_of_nodes_loses_two_of_three_in_turn() {
    if !has_kvm() {
        return;
    }
    for seed in 1..=rounds() {
        let Some(verdict) = demo(&["--network", "--seed", &seed.to_string()]) else { return };
        check(&verdict);
        let text =
            |pointer: &str| verdict.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let nodes = verdict["nodes"].as_array().unwrap();
        let names: Vec<_> = nodes.iter().map(|node| node["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(nodes.iter().all(|node| node["voted"] == true && node["key"].as_str().unwrap().len() == 64));
        // The one that was lost second, and the one that is neither that nor a.
        let (second, third) = (text("/second_takeover/from"), text("/second_takeover/to"));
        assert!(second != "a" && third != "a" && second != third, "{second} {third}");
        assert_eq!(text("/reprotected/node"), third);
        assert!(text("/reprotected/why").contains("node possible"));
        assert!(number(&verdict, "/reprotected/after_ms") > 0.0);
        assert_eq!(number(&verdict, "/second_takeover/generation"), 3.0);
        assert_eq!(number(&verdict, "/second_takeover/stale_frames"), 0.0);
        assert!(number(&verdict, "/second_takeover/acked_ops") >= 500.0);
        for part in ["detect", "arbitrate", "resume", "first_output", "server_gap", "client_gap"] {
            assert!(number(&verdict, &format!("/second_takeover/failover_ms/{part}")).is_finite());
        }
        for (name, node) in names.iter().zip(nodes) {
            assert_eq!(node["lost_at_ms"].is_null(), *name == third, "{node}");
            let roles = if *name == "a" { "[\"active\"]" } else { "[\"replica\",\"active\"]" };
            assert_eq!(node["roles"].to_string(), roles, "{node}");
        }
    }
}

#[test]
fn more_connections_and_short_epochs_change_nothing() {
    if has_kvm()
        && whole_suite()
        && let Some(verdict) = demo(&["--connections", "32", "--epoch-ms", "3", "--seed", "7"])
    {
        check(&verdict);
    }
}
