//! Seeded simulator of the failover protocol with an oracle.
