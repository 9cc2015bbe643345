//! Drives mycelium-ram-core against real pages, links, gates and arbiters.
