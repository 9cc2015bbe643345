//! Nested lab: whole Linux hosts with working KVM, in emulated machines, joined by a private network.
