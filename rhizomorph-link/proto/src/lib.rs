//! Pure wire format and reassembly of the rhizomorph link.
