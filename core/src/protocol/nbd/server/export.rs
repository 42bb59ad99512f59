//! What a server offers.

use crate::protocol::nbd::Mode;
use crate::protocol::nbd::layout::{BlockSizes, TransmissionFlags};
use crate::protocol::nbd::limits::PAYLOAD_MAX;

/// One disk that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its name.
    pub name: String,
    /// Words for people; none where empty.
    pub description: String,
    /// Bytes.
    pub len: u64,
    /// Whether nothing may be written.
    pub read_only: bool,
    /// Whether several clients may use it at once.
    pub shared: bool,
    /// Sizes of requests.
    pub sizes: BlockSizes,
    /// What block status can tell; a context's number is its place.
    pub contexts: Vec<Context>,
}

impl Export {
    /// A disk of `len` bytes that several clients may read and write, in requests of any length, and ask what is stored.
    pub fn new(name: &str, len: u64) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            len,
            read_only: false,
            shared: true,
            sizes: BlockSizes { min: 1, preferred: 4096, max: PAYLOAD_MAX },
            contexts: vec![Context::Allocation],
        }
    }
}

/// What block status can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Context {
    /// `base:allocation`: holes and zeros.
    Allocation,
    /// `qemu:allocation-depth`: which image of the chain holds the data.
    Depth,
    /// `qemu:dirty-bitmap:NAME`.
    Bitmap(String),
}

impl Context {
    /// Its name on the wire.
    pub fn name(&self) -> String {
        match self {
            Self::Allocation => "base:allocation".into(),
            Self::Depth => "qemu:allocation-depth".into(),
            Self::Bitmap(name) => format!("qemu:dirty-bitmap:{name}"),
        }
    }

    /// Whether a query names it. In a list, the beginning of a name, up to a colon, names all that begin so.
    pub(super) fn answers(&self, query: &str, lists: bool) -> bool {
        let all = match self {
            Self::Allocation => query == "base:",
            Self::Depth => query == "qemu:",
            Self::Bitmap(_) => matches!(query, "qemu:" | "qemu:dirty-bitmap:"),
        };
        lists && all || query == self.name()
    }
}

impl Export {
    /// What clients are told that it can do.
    pub fn flags(&self, mode: Mode) -> TransmissionFlags {
        use TransmissionFlags as Flags;
        let writes = Flags::SEND_TRIM.with(Flags::SEND_WRITE_ZEROES).with(Flags::SEND_FAST_ZERO);
        Flags::HAS_FLAGS
            .with(Flags::SEND_FLUSH)
            .with(Flags::SEND_FUA)
            .with(Flags::SEND_CACHE)
            .with(if self.read_only { Flags::READ_ONLY } else { writes })
            .with_if(self.shared, Flags::CAN_MULTI_CONN)
            .with_if(mode >= Mode::Structured, Flags::SEND_DF)
            .with_if(mode == Mode::Extended, Flags::BLOCK_STATUS_PAYLOAD)
    }
}
