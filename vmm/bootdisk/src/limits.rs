//! Every bound of this crate, with its unit and its reason. All of it is read from images nobody vouches for.

/// Partitions looked at. GPT tables have 128 entries as a rule; a disk that boots has a handful.
pub const PARTITIONS_MAX: usize = 128;
/// Entries of a GPT accepted; the array is read whole to check its sum.
pub const GPT_ENTRIES_MAX: u32 = 1024;
/// Bytes of one GPT entry accepted; 128 is what everybody writes.
pub const GPT_ENTRY_BYTES_MAX: u32 = 4096;
/// Bytes of a GPT's entry array.
pub const GPT_ARRAY_BYTES_MAX: u64 = 1 << 20;
/// Links of the chain of logical partitions followed: a chain can be made to loop.
pub const LOGICAL_PARTITIONS_MAX: usize = 64;

/// Exponent over 1 KiB of the largest ext4 block: 64 KiB. The block cache holds eight blocks and more.
pub const EXT_BLOCK_EXPONENT_MAX: u32 = 6;
/// Block groups of one ext4: 128 TiB in groups of 128 MiB. Each costs a read and 16 bytes.
pub const EXT_GROUPS_MAX: u64 = 1 << 20;
/// Bytes read from one ext4 before a file is opened to boot from: a replayed journal (1 GiB at most) and some folders.
pub const EXT_SEARCH_BYTES: u64 = 2 << 30;
/// Bytes read on top of a file's own while it is streamed: read-ahead of 32 KiB and its block map.
pub const EXT_STREAM_SLACK_BYTES: u64 = 64 << 20;
/// Bytes of a folder looked through: `/boot` of a machine with ten years of kernels is below 64 KiB.
pub const FOLDER_BYTES_MAX: u64 = 4 << 20;
/// Names of a folder listed.
pub const FOLDER_NAMES_MAX: usize = 4096;
/// Symbolic links followed in one path, as Linux does.
pub const LINKS_MAX: usize = 40;
/// Bytes of a path and of a link's target (`PATH_MAX`).
pub const PATH_BYTES_MAX: usize = 4096;
/// Steps of resolving one path: each link can bring a path of its own.
pub const PATH_STEPS_MAX: usize = 512;
/// Bytes of one name in a path (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;

/// Bytes of a `grub.cfg`; with dozens of kernels it has some 40 KiB.
pub const SCRIPT_BYTES_MAX: u64 = 1 << 20;
/// Tokens of one script.
pub const TOKENS_MAX: usize = 200_000;
/// Nesting of blocks, calls, submenus and included scripts, all together.
pub const NESTING_MAX: usize = 24;
/// Statements carried out in one search, loops and entries included.
pub const STATEMENTS_MAX: u32 = 20_000;
/// Looks into a file system a script may take (`-f` tests, included files): each costs reads.
pub const LOOKS_MAX: u32 = 256;
/// Bytes of one variable or expanded word; `set a=$a$a` in a loop doubles.
pub const WORD_BYTES_MAX: usize = 64 << 10;
/// Bytes of all words of one statement.
pub const WORDS_BYTES_MAX: usize = 256 << 10;
/// Bytes of all variables together: every submenu and its entries keep a copy.
pub const VARIABLES_BYTES_MAX: usize = 256 << 10;
/// Variables and functions of a script, each.
pub const NAMES_MAX: usize = 4096;
/// Boot entries, those of submenus included.
pub const ENTRIES_MAX: usize = 512;
/// Bytes of a boot-loader-spec entry, an `extlinux.conf`, a `grubenv` or an `fstab`.
pub const SMALL_FILE_BYTES_MAX: u64 = 64 << 10;
/// Initrds of one entry: microcode, the initrd, and room.
pub const INITRDS_MAX: usize = 8;
/// Bytes of a kernel command line read from an image; the machine that boots it may take less.
pub const CMDLINE_BYTES_MAX: usize = 16 << 10;

/// Bytes of a kernel image: distributions ship 10 to 20 MiB, an unstripped one has some 100.
pub const KERNEL_BYTES_MAX: u64 = 256 << 20;
/// Bytes of one initrd: generic ones with firmware have up to 300 MiB.
pub const INITRD_BYTES_MAX: u64 = 1 << 30;
