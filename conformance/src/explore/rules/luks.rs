//! Rules of LUKS, of both versions.

use super::{Rule, Stated, awaited, barrier};

const ADD: &str = "a keyslot is added to a LUKS volume";
const ERASE: &str = "a keyslot of a LUKS volume is erased";
const ADD2: &str = "a keyslot is added to a LUKS2 volume";
const REPLACE: &str = "a keyslot of a LUKS volume is overwritten by force";
const REPLACE2: &str = "a keyslot of a LUKS2 volume is overwritten by force";
const CREATE: &str = "create a LUKS volume";
const CREATE2: &str = "create a LUKS2 volume";

pub(super) const RULES: &[Rule] = &[
    barrier("luks.flush", "what a guest flushed is durable", "writes to a LUKS volume"),
    barrier("luks.resize", "a changed length is durable on return", "a shorter LUKS volume"),
    awaited(
        "luks.seal/material",
        "a key's material is written before a header says that it is there",
        CREATE,
    ),
    barrier("luks.create/before_header", "a key's material is durable before the header is there", CREATE),
    awaited("luks.create/header", "a new volume's header is written before it is made durable", CREATE),
    barrier("luks.create/after", "a created volume is durable", CREATE),
    awaited("luks.amend/slot", "salt and rounds are written before the slot says that it holds a key", ADD),
    barrier(
        "luks.add/before_state",
        "material, salt and rounds are durable before the slot says that it holds a key",
        ADD,
    ),
    awaited("luks.add/state", "a slot's state is written before it is made durable", ADD),
    barrier("luks.add/after", "a keyslot that was added is durable on return", ADD),
    awaited("luks.wipe/material", "material is overwritten before the slot says that it holds no key", ERASE),
    barrier("luks.wipe/barrier", "material is gone durably before the slot says that it holds no key", ERASE),
    barrier("luks.erase/after", "a keyslot that was erased is so durably on return", ERASE),
    barrier("luks.replace/after", "a keyslot that was overwritten is so durably on return", REPLACE),
    barrier("luks2.create/before_header", "a key's material is durable before a header names it", CREATE2),
    barrier("luks2.add/before_header", "a key's material is durable before a header names it", ADD2),
    awaited("luks2.header/copy", "a copy of the header is written before the other one is touched", ADD2),
    barrier(
        "luks2.header/after_copy",
        "a copy of the header is durable before the other one is touched",
        ADD2,
    ),
    barrier(
        "luks2.add/before_header",
        "new material is durable before a header names it for the old",
        REPLACE2,
    ),
    barrier(
        "luks2.header/after_copy",
        "the header names the new material before the old one is gone",
        REPLACE2,
    ),
    barrier(
        "luks.wipe/barrier",
        "the material of a keyslot that was overwritten is gone on return",
        REPLACE2,
    ),
];

pub(super) const STATED: &[Stated] = &[
    (
        "format/luks/amend.rs",
        &[
            ("luks.add/before_state", ADD),
            ("luks.wipe/barrier", ERASE),
            ("luks.replace/after", REPLACE),
            ("luks2.add/before_header", ADD2),
            ("luks2.add/before_header", REPLACE2),
            ("luks2.header/after_copy", REPLACE2),
        ],
    ),
    ("format/luks/copies.rs", &[("luks2.header/after_copy", ADD2)]),
    ("format/luks/create.rs", &[("luks.create/before_header", CREATE), ("luks.create/after", CREATE)]),
    ("format/luks/create2.rs", &[("luks2.create/before_header", CREATE2)]),
];
