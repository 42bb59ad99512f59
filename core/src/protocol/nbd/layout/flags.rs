//! Words of bits.

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident: $word:ty { $($(#[$bit_doc:meta])* $bit:ident = $shift:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
        pub struct $name(pub $word);

        impl $name {
            $($(#[$bit_doc])* pub const $bit: Self = Self(1 << $shift);)*
            /// No bit at all.
            pub const NONE: Self = Self(0);

            /// The bits in either word.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The bits of `other` if `yes`, with these.
            #[must_use]
            pub const fn with_if(self, yes: bool, other: Self) -> Self {
                if yes { self.with(other) } else { self }
            }

            /// The bits that are not in `other`.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// Whether all bits of `other` are set.
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
        }
    };
}

flags! {
    /// What the server says first. Source: \[NBD\] "Handshake flags".
    HandshakeFlags: u16 {
        /// Options are answered.
        FIXED_NEWSTYLE = 0;
        /// The padding after `EXPORT_NAME` may be left out.
        NO_ZEROES = 1;
    }
}

flags! {
    /// What the client answers. Source: \[NBD\] "Client flags".
    ClientFlags: u32 {
        /// It knows that options are answered.
        FIXED_NEWSTYLE = 0;
        /// The padding is left out.
        NO_ZEROES = 1;
    }
}

flags! {
    /// What an export can do. Source: \[NBD\] "Transmission flags".
    TransmissionFlags: u16 {
        /// The others mean something.
        HAS_FLAGS = 0;
        /// Nothing may be written.
        READ_ONLY = 1;
        /// There is `FLUSH`.
        SEND_FLUSH = 2;
        /// There is `FUA`.
        SEND_FUA = 3;
        /// Seeking is slow.
        ROTATIONAL = 4;
        /// There is `TRIM`.
        SEND_TRIM = 5;
        /// There is `WRITE_ZEROES`.
        SEND_WRITE_ZEROES = 6;
        /// There is `DF`.
        SEND_DF = 7;
        /// A flush on one connection covers what was written through all.
        CAN_MULTI_CONN = 8;
        /// There is `RESIZE`.
        SEND_RESIZE = 9;
        /// There is `CACHE`.
        SEND_CACHE = 10;
        /// There is `FAST_ZERO`.
        SEND_FAST_ZERO = 11;
        /// `BLOCK_STATUS` may have a payload.
        BLOCK_STATUS_PAYLOAD = 12;
    }
}

flags! {
    /// How a command is to be done. Source: \[NBD\] "Command flags".
    CommandFlags: u16 {
        /// What it wrote is durable when it is answered.
        FUA = 0;
        /// Zeros are not to become a hole.
        NO_HOLE = 1;
        /// One chunk of data.
        DF = 2;
        /// One extent.
        REQ_ONE = 3;
        /// Fail rather than write zeros slowly.
        FAST_ZERO = 4;
        /// The length is that of a payload.
        PAYLOAD_LEN = 5;
    }
}

flags! {
    /// State of an extent in the context `base:allocation`. Source: \[NBD\] "Metadata contexts"; in `qemu:dirty-bitmap:NAME` the
    /// first bit means dirty.
    StateFlags: u64 {
        /// Nothing is allocated.
        HOLE = 0;
        /// It reads as zeros.
        ZERO = 1;
    }
}
