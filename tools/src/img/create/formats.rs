//! The options with which each format makes an image, in the order in which the reference shows them.

/// What the value of an option may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// `on` or `off`.
    Switch,
    /// A size with an optional suffix.
    Size,
    /// A plain number.
    Number,
}

/// One option.
#[derive(Debug, PartialEq, Eq)]
pub struct CreateOption {
    /// Its key.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What counts, and is shown, when it is not given.
    pub default: Option<&'static str>,
    /// What it does.
    pub help: &'static str,
}

/// The name and the options of a format or protocol; `None` when it makes no images.
#[must_use]
pub fn options_of(name: &str) -> Option<(&'static str, &'static [CreateOption])> {
    ALL.iter().find(|(known, _)| *known == name).copied()
}

/// The options of a format that the reference does not have.
pub(super) fn own_options_of(name: &str) -> &'static [CreateOption] {
    if name == "luks" { LUKS2 } else { &[] }
}

const ALL: &[(&str, &[CreateOption])] = &[
    ("file", FILE),
    ("host_device", EXISTING),
    ("luks", LUKS),
    ("nbd", EXISTING),
    ("nbd", EXISTING),
    ("nvme", EXISTING),
    ("parallels", PARALLELS),
    ("qcow", QCOW),
    ("qcow2", QCOW2),
    ("qed", QED),
    ("raw", &[SIZE]),
    ("vdi", VDI),
    ("vhdx", VHDX),
    ("vmdk", VMDK),
    ("vpc", VPC),
];

const fn text(name: &'static str, help: &'static str) -> CreateOption {
    CreateOption { name, kind: Kind::Text, default: None, help }
}

const fn switch(name: &'static str, default: Option<&'static str>, help: &'static str) -> CreateOption {
    CreateOption { name, kind: Kind::Switch, default, help }
}

const fn size(name: &'static str, default: Option<&'static str>, help: &'static str) -> CreateOption {
    CreateOption { name, kind: Kind::Size, default, help }
}

const fn number(name: &'static str, default: Option<&'static str>, help: &'static str) -> CreateOption {
    CreateOption { name, kind: Kind::Number, default, help }
}

const SIZE: CreateOption = size("size", None, "Virtual disk size");
const BACKING_FILE: CreateOption = text("backing_file", "File name of a base image");
const BACKING_FMT: CreateOption = text("backing_fmt", "Image format of the base image");
const ENCRYPTION: CreateOption = switch(
    "encryption",
    None,
    "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
);

const FILE: &[CreateOption] = &[
    SIZE,
    switch("nocow", None, "Turn off copy-on-write (valid only on btrfs)"),
    text("preallocation", "Preallocation mode (allowed values: off, falloc, full)"),
    size("extent_size_hint", None, "Extent size hint for the image file, 0 to disable"),
];

/// Of protocols that cannot make a file, but can use one that exists.
const EXISTING: &[CreateOption] = &[SIZE, text("preallocation", "Preallocation mode (allowed values: off)")];

const QCOW2: &[CreateOption] = &[
    ENCRYPTION,
    text("encrypt.format", "Encrypt the image, format choices: 'aes', 'luks'"),
    text("encrypt.key-secret", "ID of secret providing qcow AES key or LUKS passphrase"),
    text("encrypt.cipher-alg", "Name of encryption cipher algorithm"),
    text("encrypt.cipher-mode", "Name of encryption cipher mode"),
    text("encrypt.ivgen-alg", "Name of IV generator algorithm"),
    text("encrypt.ivgen-hash-alg", "Name of IV generator hash algorithm"),
    text("encrypt.hash-alg", "Name of encryption hash algorithm"),
    number("encrypt.iter-time", None, "Time to spend in PBKDF in milliseconds"),
    size("cluster_size", Some("65536"), "qcow2 cluster size"),
    switch("extended_l2", Some("off"), "Extended L2 tables"),
    text("preallocation", "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    CreateOption {
        name: "compression_type",
        kind: Kind::Text,
        default: Some("zlib"),
        help: "Compression method used for image cluster compression",
    },
    SIZE,
    text("compat", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    BACKING_FILE,
    BACKING_FMT,
    text("data_file", "File name of an external data file"),
    switch("data_file_raw", None, "The external data file must stay valid as a raw image"),
    switch("lazy_refcounts", Some("off"), "Postpone refcount updates"),
    number("refcount_bits", Some("16"), "Width of a reference count entry in bits"),
];

/// What `amend` can change of a qcow2 image.
pub(super) const QCOW2_AMEND: &[CreateOption] = &[
    BACKING_FILE,
    BACKING_FMT,
    text("compat", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    text("data_file", "File name of an external data file"),
    switch("data_file_raw", None, "The external data file must stay valid as a raw image"),
    number("encrypt.iter-time", None, "Time to spend in PBKDF in milliseconds"),
    number("encrypt.keyslot", None, "Select a single keyslot to modify explicitly"),
    text("encrypt.new-secret", "New secret to set in the matching keyslots. Empty string to erase"),
    text("encrypt.old-secret", "Select all keyslots that match this password"),
    text("encrypt.state", "Select new state of affected keyslots (active/inactive)"),
    switch("lazy_refcounts", None, "Postpone refcount updates"),
    number("refcount_bits", None, "Width of a reference count entry in bits"),
    SIZE,
];

/// What `amend` can change of a LUKS volume.
pub(super) const LUKS_AMEND: &[CreateOption] = &[
    number("iter-time", None, "Time to spend in PBKDF in milliseconds"),
    number("keyslot", None, "Select a single keyslot to modify explicitly"),
    text("new-secret", "New secret to set in the matching keyslots. Empty string to erase"),
    text("old-secret", "Select all keyslots that match this password"),
    text("state", "Select new state of affected keyslots (active/inactive)"),
];

const QCOW: &[CreateOption] = &[
    SIZE,
    BACKING_FILE,
    text("backing_fmt", "Format of the backing image"),
    ENCRYPTION,
    text("encrypt.format", "Encrypt the image, format choices: 'aes'"),
    text("encrypt.key-secret", "ID of the secret that provides the AES encryption key"),
];

const QED: &[CreateOption] = &[
    SIZE,
    BACKING_FILE,
    BACKING_FMT,
    size("cluster_size", Some("65536"), "Cluster size (in bytes)"),
    size("table_size", None, "L1/L2 table size (in clusters)"),
];

const VMDK: &[CreateOption] = &[
    SIZE,
    text(
        "adapter_type",
        "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX",
    ),
    BACKING_FILE,
    text("backing_fmt", "Must be 'vmdk' if present"),
    switch("compat6", Some("off"), "VMDK version 6 image"),
    CreateOption {
        name: "hwversion",
        kind: Kind::Text,
        default: Some("undefined"),
        help: "VMDK hardware version",
    },
    text("toolsversion", "VMware guest tools version"),
    text(
        "subformat",
        "VMDK flat extent format, can be one of {monolithicSparse (default) | monolithicFlat | \
         twoGbMaxExtentSparse | twoGbMaxExtentFlat | streamOptimized} ",
    ),
    switch("zeroed_grain", None, "Enable efficient zero writes using the zeroed-grain GTE feature"),
];

const VDI: &[CreateOption] = &[SIZE, switch("static", Some("off"), "VDI static (pre-allocated) image")];

const VPC: &[CreateOption] = &[
    SIZE,
    text("subformat", "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} "),
    switch(
        "force_size",
        None,
        "Force disk size calculation to use the actual size specified, rather than using the nearest CHS-based \
         calculation",
    ),
];

const VHDX: &[CreateOption] = &[
    size("size", None, "Virtual disk size; max of 64TB."),
    size("log_size", Some("1048576"), "Log size; min 1MB."),
    size(
        "block_size",
        Some("0"),
        "Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size.",
    ),
    text("subformat", "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'."),
    switch(
        "block_state_zero",
        None,
        "Force use of payload blocks of type 'ZERO'. Non-standard, but default.  Do not set to 'off' when using \
         'qemu-img convert' with subformat=dynamic.",
    ),
];

const PARALLELS: &[CreateOption] =
    &[SIZE, size("cluster_size", Some("1048576"), "Parallels image cluster size")];

const LUKS: &[CreateOption] = &[
    SIZE,
    text("key-secret", "ID of the secret that provides the keyslot passphrase"),
    text("cipher-alg", "Name of encryption cipher algorithm"),
    text("cipher-mode", "Name of encryption cipher mode"),
    text("ivgen-alg", "Name of IV generator algorithm"),
    text("ivgen-hash-alg", "Name of IV generator hash algorithm"),
    text("hash-alg", "Name of encryption hash algorithm"),
    number("iter-time", None, "Time to spend in PBKDF in milliseconds"),
    switch("detached-header", None, "Create a detached LUKS header"),
];

/// What LUKS2 needs to be told, in cryptsetup's words.
const LUKS2: &[CreateOption] = &[
    text("version", "Version of the volume: luks1 (default) or luks2"),
    text("pbkdf", "How luks2 makes keys of passphrases: argon2id (default), argon2i or pbkdf2"),
    number("pbkdf-memory", None, "Memory of Argon2 in KiB, at the most unless its passes are given"),
    number("pbkdf-parallel", None, "Lanes of Argon2, 1 to 4"),
    number("pbkdf-force-iterations", None, "Passes of Argon2 or rounds of PBKDF2, however long they take"),
    number("sector-size", None, "Bytes of an encrypted sector of luks2: 512 (default), 1024, 2048 or 4096"),
];
