//! What a lab host boots from: the agent as init, its plan, its modules, and the files a test wants inside.

use std::fs;
use std::path::Path;

use lab_agent::plan::{BootPlan, PLAN_PATH};

use super::{Archive, Kernel};
use crate::LabError;
use crate::host::HostFile;

/// Modules the agent cannot do without: the bus, the NICs and the control port.
const AGENT_MODULES: [&str; 3] = ["virtio_pci", "virtio_net", "virtio_console"];

/// Builds a host's initramfs. `plan.modules` holds names and is completed with what they and the agent need; the
/// archive's own plan holds paths.
pub(crate) fn host_initramfs(
    kernel: &Kernel,
    agent: &Path,
    plan: &BootPlan,
    files: &[HostFile],
) -> Result<Vec<u8>, LabError> {
    let mut archive = Archive::new();
    archive.file("/init", 0o755, read(agent)?);
    let wanted: Vec<&str> =
        AGENT_MODULES.into_iter().chain(plan.modules.iter().map(String::as_str)).collect();
    let mut modules = Vec::new();
    for (name, content) in kernel.modules(&wanted)? {
        let path = format!("/lab/modules/{name}.ko");
        archive.file(&path, 0o644, content);
        modules.push(path);
    }
    let plan = BootPlan { modules, ..plan.clone() };
    let plan = serde_json::to_vec(&plan)
        .map_err(|error| LabError::image(PLAN_PATH, error, "shorten the host's config"))?;
    archive.file(PLAN_PATH, 0o644, plan);
    for file in files {
        archive.file(&file.path, file.mode, read(&file.source)?);
    }
    Ok(archive.finish()?)
}

fn read(path: &Path) -> Result<Vec<u8>, LabError> {
    fs::read(path).map_err(LabError::file("read", path))
}
