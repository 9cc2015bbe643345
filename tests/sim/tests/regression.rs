//! Seeds that once failed, each called after the bug it found. A seed is a run of the simulator as it is: when scenarios
//! change, look for new seeds by putting the bug back (each has a test of its own in the core as well).

use mycelium_sim::run;

fn keeps_every_promise(seed: u64) {
    let outcome = run(seed, false);
    assert_eq!(outcome.violation, None, "seed {seed} ({})", outcome.class.name());
}

/// After a reconnect no cut came any more: each waited for the acknowledgement of epochs that had been aborted.
#[test]
fn cuts_waited_for_aborted_epochs() {
    keeps_every_promise(26);
}

/// A replica that had been spared epochs while it seeded stopped all cuts when it joined.
#[test]
fn cuts_waited_for_epochs_a_joiner_was_never_sent() {
    keeps_every_promise(7);
}

/// Under `halt` a guest ran unprotected at its first boot and after a takeover.
#[test]
fn halt_did_not_hold_before_the_first_replica() {
    keeps_every_promise(8);
}

/// A second joiner was listed without the epoch in which the gate had closed; its takeover forgot released output.
#[test]
fn a_second_joiner_was_listed_too_early() {
    keeps_every_promise(412);
}

/// A replica that was dropped and came back with epochs staged was sent a seed that could never become whole.
#[test]
fn a_dropped_replica_was_seeded_on_top_of_what_it_kept() {
    keeps_every_promise(254);
}

/// A stop right after a replica joined was taken for the round trip, and word that old was released on.
#[test]
fn a_stop_was_taken_for_a_round_trip() {
    keeps_every_promise(1201);
}

/// Under `halt` what waited left on the word of the next replica before the record listed it.
#[test]
fn halt_let_output_out_before_the_next_replica_was_listed() {
    keeps_every_promise(307);
}

/// Under `halt` what waited left on the word of a dismissed replica when the record listed it no more.
#[test]
fn halt_let_output_out_on_the_word_of_a_dismissed_replica() {
    keeps_every_promise(4131);
}

#[test]
fn a_full_part_of_the_disk_was_not_sent() {
    keeps_every_promise(5635);
}

#[test]
fn a_replica_was_listed_without_what_it_had_missed_of_the_disk() {
    keeps_every_promise(1529);
}

#[test]
fn a_stamp_from_before_a_cut_was_taken_for_a_round_trip() {
    keeps_every_promise(9629);
}

#[test]
fn cuts_waited_for_epochs_that_a_seeding_replica_was_spared() {
    keeps_every_promise(18755);
}
