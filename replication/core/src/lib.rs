//! Pure core of epoch replication: epochs, commit, output rule, detector, takeover, degrade, arbiter record.
