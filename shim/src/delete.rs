//! `delete`: containerd's last resort when a shim was killed. Undoes what the bundle's note tells of, and says how the
//! task ended.

use std::io::Write;

use anyhow::Result;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;

use crate::args::Args;
use crate::process::Exit;
use crate::rundir::Note;
use crate::{start, task};

/// What a killed process's status is.
const KILLED: u32 = 137;

pub(crate) fn run(args: &Args) -> Result<()> {
    let pid = Note::load(&args.bundle).vmm.map_or(0, |(pid, _)| pid);
    task::undo(&args.bundle, &args.bundle.join("rootfs"));
    let _ = std::fs::remove_file(start::socket_path(&args.namespace, &args.address, &args.id));
    let exit = Exit::now(KILLED);
    let reply =
        DeleteResponse { pid, exit_status: exit.status, exited_at: exit.at(), ..DeleteResponse::default() };
    std::io::stdout().write_all(&reply.write_to_bytes()?)?;
    Ok(())
}
