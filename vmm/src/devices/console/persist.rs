//! State of the console: what driver and device know of each other's ends. Clients are no part of it.

use super::control::{PortState, owed};
use super::device::Console;
use crate::limits::CONSOLES_MAX;
use crate::state::{Fields, Payload, StateError};

/// The client of a process that is gone. Clients are counted from 1, and a console's is always 0.
const FORMER: u64 = u64::MAX;

/// The console's own part of its section.
#[derive(Debug)]
pub(crate) struct ConsoleSaved(Vec<PortState>);

impl Console {
    pub(super) fn save_own(&self, out: &mut Payload<'_>) {
        out.u8(u8::try_from(self.ports.len()).unwrap_or(u8::MAX));
        for PortState { owed, ready, open, told, size: (columns, rows) } in self.ports.iter().map(|p| p.state)
        {
            out.u8(owed);
            out.bool(ready);
            out.bool(open);
            out.bool(told.is_some());
            out.u16(columns);
            out.u16(rows);
        }
    }

    pub(super) fn restore_own(&mut self, saved: &ConsoleSaved) {
        for (number, (port, saved)) in self.ports.iter_mut().zip(&saved.0).enumerate() {
            // A state from before anybody said how large the window is, as at a reset, does not make it unknown.
            let size = if saved.size == (0, 0) { port.state.size } else { saved.size };
            port.state = PortState { size, ..*saved };
            if number == 0 {
                port.state.told = saved.told.map(|_| 0);
            }
            port.taken = 0;
        }
    }
}

impl ConsoleSaved {
    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<ConsoleSaved, StateError> {
        let ports = fields.u8()?;
        if usize::from(ports) > CONSOLES_MAX {
            return Err(fields.invalid("number of ports", u64::from(ports), "no console has as many"));
        }
        (0..ports).map(|_| decode_port(fields)).collect::<Result<_, _>>().map(ConsoleSaved)
    }
}

fn decode_port(fields: &mut Fields<'_>) -> Result<PortState, StateError> {
    let owed = fields.u8()?;
    if owed & !owed::ALL != 0 {
        return Err(fields.invalid("messages owed", u64::from(owed), "there is no such message"));
    }
    Ok(PortState {
        owed,
        ready: fields.bool("port is ready")?,
        open: fields.bool("port is open in the guest")?,
        told: fields.bool("port is open on the host")?.then_some(FORMER),
        size: (fields.u16()?, fields.u16()?),
    })
}
