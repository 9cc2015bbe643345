//! One table of a spec by itself: a device that is attached while its VM runs, and the devices of a running VM as a spec has
//! them.

use std::path::Path;

use serde::Serialize;

use super::net::WrittenNet;
use super::parse::field;
use super::written::WrittenDisk;
use super::{DiskSpec, NetSpec, SpecError, VmSpec};
use crate::limits::SPEC_BYTES_MAX;

/// What a relative path without a folder to start from is told.
pub const MISSING_BASE: &str = "is relative to nothing this process knows";

/// What a `[[disk]]` or `[[net]]` table holds, without its header.
#[derive(Clone, Copy, Debug)]
pub enum DeviceTable<'a> {
    /// Of a `[[disk]]`.
    Disk(&'a str),
    /// Of a `[[net]]`.
    Net(&'a str),
}

impl DeviceTable<'_> {
    fn text(&self) -> &str {
        match self {
            DeviceTable::Disk(text) | DeviceTable::Net(text) => text,
        }
    }

    fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, SpecError> {
        let name = match self {
            DeviceTable::Disk(_) => "[[disk]]",
            DeviceTable::Net(_) => "[[net]]",
        };
        let text = self.text();
        if text.len() as u64 > SPEC_BYTES_MAX {
            return Err(SpecError::TooLarge { path: name.into(), bytes: text.len() as u64 });
        }
        toml::from_str(text).map_err(|e| SpecError::Syntax { path: name.into(), source: Box::new(e) })
    }

    /// The disk, number `number` of a machine with `vcpus` vCPUs, with the checks of a spec. Its path must be absolute.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn disk(&self, vcpus: u8, number: u16) -> Result<DiskSpec, SpecError> {
        let written: WrittenDisk = self.read()?;
        if written.path.is_relative() {
            return Err(field("disk.path", written.path.display(), MISSING_BASE, "make it absolute"));
        }
        written.check(number, Path::new("/"), vcpus)
    }

    /// The card, with the checks of a spec.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn card(&self) -> Result<NetSpec, SpecError> {
        self.read::<WrittenNet>()?.check()
    }
}

#[derive(Serialize)]
struct Devices {
    net: Vec<WrittenNet>,
    disk: Vec<WrittenDisk>,
}

impl VmSpec {
    /// Its `[[net]]` and `[[disk]]` tables with every slot said, as a spec file has them.
    pub fn device_tables(&self) -> String {
        let said = self.clone().with_slots_said();
        let devices = Devices {
            net: said.net.iter().map(WrittenNet::of).collect(),
            disk: said.devices.disks.iter().map(WrittenDisk::of).collect(),
        };
        toml::to_string(&devices).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::DeviceSpecs;
    use crate::virtio::rig;

    #[test]
    fn a_table_by_itself_is_checked_as_one_in_a_spec() {
        let disk = |text| DeviceTable::Disk(text).disk(2, 3);
        let good = disk("path = \"/srv/a.qcow2\"\nreadonly = true").unwrap();
        assert_eq!((good.serial.as_str(), good.queues, good.readonly), ("disk3", 2, true));
        for (text, said) in [
            ("path = \"a.img\"", "relative"),
            ("path = \"/a\"\nqueues = 9", "disk.queues"),
            ("path = \"/a\"\nslot = 0", "disk.slot"),
            ("path = \"/a\"\nbogus = 1", "bogus"),
            ("", "path"),
            ("path", "[[disk]]"),
        ] {
            let refused = disk(text).unwrap_err().to_string();
            assert!(refused.contains(said), "{text:?}: {refused}");
        }
        let card = DeviceTable::Net("tap = \"tap7\"\nmac = \"02:00:00:00:00:07\"").card().unwrap();
        assert_eq!((card.tap.as_str(), card.slot), ("tap7", None));
        assert!(DeviceTable::Net("tap = \"tap7\"\nmac = \"x\"").card().is_err());
    }

    #[test]
    fn a_spec_gets_its_devices_back_as_they_were() {
        let mut spec = rig::spec(DeviceSpecs::default());
        let table = "path = \"/a\"\nserial = \"s\"\niops = 5\nslot = 9\ncache = \"direct\"";
        spec.devices.disks.push(DeviceTable::Disk(table).disk(1, 0).unwrap());
        let table = "tap = \"tap7\"\nmac = \"02:00:00:00:00:07\"\nremovable = true\nqueues = 2";
        spec.net.push(DeviceTable::Net(table).card().unwrap());
        let text = format!("name = \"a\"\nram_mib = 64\nfirmware = \"{{}}\"\n{}", spec.device_tables());
        // The firmware has to be one, which is not what is tested here.
        let kernel = VmSpec::parse(&text, Path::new("/x")).unwrap_err().to_string();
        assert!(kernel.contains("firmware"), "{kernel}");
        let tables: toml::Table = spec.device_tables().parse().unwrap();
        assert_eq!(tables["disk"][0]["slot"].as_integer(), Some(9));
        assert_eq!(tables["net"][0]["slot"].as_integer(), Some(1));
        let text = toml::to_string(&tables["disk"][0]).unwrap();
        assert_eq!(DeviceTable::Disk(&text).disk(1, 0).unwrap(), spec.devices.disks[0]);
    }
}
