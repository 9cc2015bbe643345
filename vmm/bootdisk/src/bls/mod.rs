//! Boot-loader-spec entries (UAPI.1), as Fedora and systemd write them.

mod version;

use std::cmp::Ordering;

use crate::error::Fault;
use crate::grub::substitute;
use crate::limits;
use crate::menu::{Boot, Item, Place};
use crate::volume::Volumes;

/// Where entries lie, seen from a `/boot` partition and from a root file system.
pub(crate) const FOLDERS: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];

/// One entry's file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    /// The file's name without `.conf`.
    id: String,
    title: String,
    version: String,
    machine_id: String,
    sort_key: String,
    linux: String,
    initrds: Vec<String>,
    options: Vec<String>,
}

/// The entries of a volume, the newest first. `value` gives the variables options may name.
pub(crate) fn read(
    volumes: &Volumes,
    volume: usize,
    value: &dyn Fn(&str) -> String,
) -> Result<Vec<(Item, Boot)>, Fault> {
    let mut entries = files(volumes, volume)?;
    entries.sort_by(order);
    entries.iter().map(|entry| Ok((item(entry, &entries), boot(entry, volume, value)?))).collect()
}

fn files(volumes: &Volumes, volume: usize) -> Result<Vec<Entry>, Fault> {
    let Some(files) = volumes.files(volume) else {
        return Ok(Vec::new());
    };
    let mut entries = Vec::new();
    for folder in FOLDERS {
        for name in files.list(folder)?.iter().filter(|name| name.ends_with(".conf")) {
            if entries.len() == limits::ENTRIES_MAX {
                return Err(Fault::bound("entries", limits::ENTRIES_MAX));
            }
            let bytes = files.read(&format!("{folder}/{name}"), limits::SMALL_FILE_BYTES_MAX)?;
            entries.extend(bytes.map(|bytes| parse(name, &String::from_utf8_lossy(&bytes))));
        }
        if !entries.is_empty() {
            break;
        }
    }
    Ok(entries)
}

fn parse(file: &str, text: &str) -> Entry {
    let name = file.strip_suffix(".conf").unwrap_or(file);
    let mut entry = Entry { id: without_counter(name).to_owned(), ..Entry::default() };
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let value = value.trim();
        match key {
            "title" => value.clone_into(&mut entry.title),
            "version" => value.clone_into(&mut entry.version),
            "machine-id" => value.clone_into(&mut entry.machine_id),
            "sort-key" => value.clone_into(&mut entry.sort_key),
            "linux" => value.clone_into(&mut entry.linux),
            "initrd" => entry.initrds.push(value.to_owned()),
            "options" => entry.options.push(value.to_owned()),
            _ => {}
        }
    }
    entry
}

/// A name may end in `+LEFT` or `+LEFT-DONE`, the boots still tried.
fn without_counter(name: &str) -> &str {
    match name.rsplit_once('+') {
        Some((id, counter)) if counter.bytes().all(|b| b.is_ascii_digit() || b == b'-') => id,
        _ => name,
    }
}

/// As the specification sorts: by sort key, then machine, then the newer version; those without a key come last, the
/// newer name first.
fn order(a: &Entry, b: &Entry) -> Ordering {
    let newer_name = || version::compare(&b.id, &a.id);
    match (a.sort_key.is_empty(), b.sort_key.is_empty()) {
        (false, true) => Ordering::Less,
        (true, false) => Ordering::Greater,
        (true, true) => newer_name(),
        (false, false) => (a.sort_key.cmp(&b.sort_key))
            .then_with(|| a.machine_id.cmp(&b.machine_id))
            .then_with(|| version::compare(&b.version, &a.version))
            .then_with(newer_name),
    }
}

fn item(entry: &Entry, all: &[Entry]) -> Item {
    let shared = all.iter().filter(|other| other.title == entry.title).count() > 1;
    let title = match (entry.title.as_str(), shared) {
        ("", _) => entry.id.clone(),
        (title, false) => title.to_owned(),
        (title, true) => {
            format!("{title} ({})", if entry.version.is_empty() { &entry.id } else { &entry.version })
        }
    };
    Item { title, ids: vec![entry.id.clone()] }
}

fn boot(entry: &Entry, volume: usize, value: &dyn Fn(&str) -> String) -> Result<Boot, Fault> {
    let place = |path: &str| Place {
        volume: Some(volume),
        device: String::new(),
        path: format!("/{}", path.trim_start_matches('/')),
    };
    // Fedora writes `initrd /initramfs.img $tuned_initrd`.
    let initrds = substitute(&entry.initrds.join(" "), value)?;
    let initrds: Vec<_> = initrds.split_whitespace().map(place).collect();
    if initrds.len() > limits::INITRDS_MAX {
        return Err(Fault::bound("initrds", limits::INITRDS_MAX));
    }
    let options = substitute(&entry.options.join(" "), value)?;
    if options.len() > limits::CMDLINE_BYTES_MAX {
        return Err(Fault::bound("bytes of a command line", limits::CMDLINE_BYTES_MAX));
    }
    let kernel = (!entry.linux.is_empty()).then(|| place(&entry.linux));
    Ok(Boot { kernel, initrds, cmdline: options.split_whitespace().collect::<Vec<_>>().join(" ") })
}

/// Entry point for fuzzing.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(text: &str) {
    let (entry, other) = (parse("a-1.2.conf", text), parse("a-1.10.conf", "version 1.10\nsort-key a"));
    assert_eq!(order(&entry, &other), order(&other, &entry).reverse());
    let _ = boot(&entry, 0, &|name| name.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEDORA: &str = "title Fedora Linux (6.8.5-301.fc40.x86_64) 40 (Server Edition)\n\
        version 6.8.5-301.fc40.x86_64\nlinux /vmlinuz-6.8.5-301.fc40.x86_64\n\
        initrd /initramfs-6.8.5-301.fc40.x86_64.img $tuned_initrd\noptions $kernelopts ${tuned_params}\n\
        grub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n";

    #[test]
    fn fedoras_entry_is_read_and_its_variables_replaced() {
        let entry = parse("4f2d-6.8.5-301.fc40.x86_64.conf", FEDORA);
        assert_eq!(
            (entry.id.as_str(), entry.version.as_str()),
            ("4f2d-6.8.5-301.fc40.x86_64", "6.8.5-301.fc40.x86_64")
        );
        let value =
            |name: &str| if name == "kernelopts" { "root=UUID=1 ro".to_owned() } else { String::new() };
        let boot = boot(&entry, 3, &value).unwrap();
        assert_eq!(boot.cmdline, "root=UUID=1 ro");
        assert_eq!(boot.initrds.len(), 1);
        assert_eq!(boot.kernel.unwrap().path, "/vmlinuz-6.8.5-301.fc40.x86_64");
    }

    #[test]
    fn newer_names_come_first_and_sort_keys_before_all() {
        let mut entries =
            ["a-6.9.0.conf", "a-6.10.0.conf", "a-6.8.1.conf"].map(|name| parse(name, "")).to_vec();
        entries.push(parse("0.conf", "sort-key z\nversion 1"));
        entries.push(parse("1.conf", "sort-key z\nversion 1.1"));
        entries.sort_by(order);
        let ids: Vec<_> = entries.iter().map(|e| e.id.as_str()).collect();
        assert_eq!(ids, ["1", "0", "a-6.10.0", "a-6.9.0", "a-6.8.1"]);
    }

    #[test]
    fn boot_counters_are_no_part_of_the_id() {
        assert_eq!(parse("a-1+3-0.conf", "").id, "a-1");
        assert_eq!(parse("a+b.conf", "").id, "a+b");
    }

    #[test]
    fn entries_of_one_title_are_told_apart_by_version() {
        let entries =
            [parse("a.conf", "title T\nversion 1"), parse("b.conf", "title T"), parse("c.conf", "")];
        let titles = entries.each_ref().map(|e| item(e, &entries).title);
        assert_eq!(titles, ["T (1)", "T (b)", "c"]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,400}") {
            fuzz(&text);
        }
    }
}
