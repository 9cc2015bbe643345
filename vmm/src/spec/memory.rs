//! What guest RAM is made of on the host.

use serde::Deserialize;

/// Pages behind guest RAM. Of this node alone: another node may use others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    /// Pages of 4 KiB.
    #[default]
    None,
    /// Huge pages where the kernel can make some (`/sys/kernel/mm/transparent_hugepage/shmem_enabled` must allow it).
    Advise,
    /// Pages of 2 MiB from the host's pool (`vm.nr_hugepages`), all taken when the machine is built.
    Hugetlb,
}
