//! The Debian that this project's own tests run.

use std::path::PathBuf;

use super::{DebianOptions, RootLogin, StaticAddress, debian_image};
use crate::disk::Format;
use crate::{Cache, ImageError, Observer};

/// A disk generator, a port forwarder, a store to lose nothing of, a language, something to compute with, and a root that
/// is not written to (`overlayroot=tmpfs`), whose script in the initramfs takes busybox's `grep` without saying so.
const PACKAGES: [&str; 7] =
    ["fio", "socat", "redis-server", "python3-minimal", "openssl", "overlayroot", "busybox"];
/// The store serves everybody: a test's network has nobody else.
const OPEN_REDIS: &str =
    "sed -i -e 's/^bind .*/bind * -::*/' -e 's/^protected-mode .*/protected-mode no/' /etc/redis/redis.conf";
/// A start on an emulated processor is slow, not hung: systemd gives a console or a service up after 90 s otherwise.
const PATIENT_SYSTEMD: &str = "mkdir -p /etc/systemd/system.conf.d && printf '%s\\n' '[Manager]' DefaultTimeoutStartSec=900 \
                               DefaultDeviceTimeoutSec=900 >/etc/systemd/system.conf.d/patience.conf";

/// A Debian for tests, in both formats. Not to be written to: copy it, or lay an overlay over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestImage {
    /// Byte for byte.
    pub raw: PathBuf,
    /// The same disk as qcow2.
    pub qcow2: PathBuf,
    /// Whether it was in the cache already.
    pub cached: bool,
}

/// Debian with fio, socat, Redis (listening everywhere), Python and OpenSSL; root logs in on the console without a password;
/// the NIC has `address`. Built once.
///
/// # Errors
/// As [`debian_image`].
pub fn debian_test_image(
    cache: &Cache,
    address: StaticAddress,
    observer: &dyn Observer,
) -> Result<TestImage, ImageError> {
    let image = debian_image(cache, &options(address), false, observer)?;
    let file = |format| image.file(format, observer);
    Ok(TestImage { raw: file(Format::Raw)?, qcow2: file(Format::Qcow2)?, cached: image.cached })
}

fn options(address: StaticAddress) -> DebianOptions {
    DebianOptions {
        include: PACKAGES.map(str::to_owned).to_vec(),
        commands: [OPEN_REDIS, PATIENT_SYSTEMD].map(str::to_owned).to_vec(),
        address: Some(address),
        root: RootLogin::Passwordless,
        ..DebianOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tests_ask_for_can_be_built() {
        assert!(options("10.77.0.2/24".parse().unwrap()).check().is_ok());
    }
}
