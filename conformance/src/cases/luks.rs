//! Encrypted volumes and images: LUKS1 and qcow2 of QEMU's tools, and LUKS2, which those do not have.

use drystone_core::crypto::{Argon2Kind, CipherName};
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::luks::{CreateOptions, KdfChoice, NewVersion, Options2};
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::job::{ImageSpec, create};

use super::WRITABLE;
use crate::disk::DiskConfig;
use crate::explore::straight;
use crate::model::Rules;
use crate::qemu::{Recipe, secret_option};
use crate::scenario::Mix;
use crate::sim::SECRETS;
use crate::sparse::Sparse;
use crate::suite::{Case, Image, Stage};
use crate::world::World;

/// Bytes of the disks of LUKS2 volumes.
const SIZE: u64 = 256 << 10;

/// Requests of a plan: each run opens the image a few times, which is what takes long.
const STEPS: usize = 24;

/// Name, format, bytes of the unit that requests prefer, commands. `SECRET` stands for the object with the passphrase.
const MADE: &[(&str, &str, u64, &[&str])] = &[
    ("luks", "luks", 512, &["qemu-img create SECRET -f luks -o key-secret=key,iter-time=1 top 256k"]),
    (
        "luks, cbc with essiv and sha512",
        "luks",
        512,
        &["qemu-img create SECRET -f luks -o key-secret=key,iter-time=1,cipher-mode=cbc,\
           ivgen-alg=essiv,ivgen-hash-alg=sha256,cipher-alg=aes-256,hash-alg=sha512 top 100k"],
    ),
    (
        "qcow2, encrypted",
        "qcow2",
        4096,
        &[
            "qemu-img create SECRET -f qcow2 -o cluster_size=4k,encrypt.format=luks,encrypt.key-secret=key,\
             encrypt.iter-time=1 top 1000001",
            FILLED,
        ],
    ),
    (
        "qcow2, encrypted above a backing file",
        "qcow2",
        16384,
        &[
            "qemu-img create -f raw base.raw 700k",
            "qemu-io -f raw -c 'write -P 5 0 600k' base.raw",
            "qemu-img create SECRET -f qcow2 -b base.raw -F raw -o cluster_size=16k,extended_l2=on,encrypt.format=luks,\
             encrypt.key-secret=key,encrypt.iter-time=1 top 1M",
            FILLED,
        ],
    ),
];

const FILLED: &str = "qemu-io SECRET --image-opts -c 'write -P 17 10k 150k' -c 'write -P 18 400k 90k' \
                      driver=qcow2,encrypt.key-secret=key,file.filename=top";

/// All of them.
///
/// # Errors
/// When QEMU's tools are not there, or fail.
pub fn luks_cases() -> std::result::Result<Vec<Case>, String> {
    let argon2 = KdfChoice { argon2: Some(Argon2Kind::Id), memory_kib: 32, lanes: 1, iterations: Some(4) };
    let pbkdf2 = KdfChoice { argon2: None, iterations: Some(1000), ..argon2 };
    let made = MADE.iter().map(made_by_qemu);
    let serpent = CipherName::parse("serpent", "xts-plain64");
    made.chain([
        Ok(luks2("luks2", Options2 { kdf: pbkdf2, sector_len: 512 }, None, false)),
        Ok(luks2("luks2, sectors of 4096, direct", Options2 { kdf: argon2, sector_len: 4096 }, None, true)),
        Ok(luks2(
            "luks2, serpent, sectors of 1024",
            Options2 { kdf: argon2, sector_len: 1024 },
            serpent,
            false,
        )),
    ])
    .collect()
}

fn made_by_qemu(made: &(&str, &'static str, u64, &[&str])) -> std::result::Result<Case, String> {
    let &(name, format, granule, commands) = made;
    let (id, passphrase) = SECRETS[0];
    let object = format!("--object secret,id={id},data={passphrase}");
    let commands: Vec<String> = commands.iter().map(|line| line.replace("SECRET", &object)).collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let mut recipe = Recipe::new(name, format, "top", &commands);
    recipe.mix.granule = granule;
    recipe.mix.steps = STEPS;
    if format == "qcow2" {
        // Metadata that could not be written is kept, and the next flush writes it.
        recipe.rules.sticky_flush = false;
        recipe.rules.discards_on_its_own = true;
    }
    let case = recipe.case(move |_, path| spec(format, path, WRITABLE));
    case.map_err(|report| format!("{name}: {report}"))
}

/// An image that the first of the secrets opens.
fn spec(format: &str, path: &str, mode: OpenMode) -> NodeSpec {
    let encrypted = secret_option(format, &[&[0; 32][..], &[0, 0, 0, 2]].concat());
    let option = encrypted.expect("a format that encrypts");
    let (id, file) = (SECRETS[0].0, format!(r#"{{"driver":"file","filename":"{path}"}}"#));
    let whole =
        format!(r#"json:{{"driver":"{format}","node-name":"disk0","{option}":"{id}","file":{file}}}"#);
    from_filename(&whole, None, mode).expect("legal options")
}

/// A new volume, in which a reader who opens it anew sees what the guest saw.
fn luks2(name: &str, more: Options2, cipher: Option<CipherName>, direct: bool) -> Case {
    let mut options = CreateOptions::new(SIZE, Some(SECRETS[0].0.into()));
    (options.key_len, options.version) = (32, NewVersion::V2(more));
    options.cipher = cipher.unwrap_or(options.cipher);
    let setup = move |world: &mut World| {
        let image = ImageSpec::Luks(options.clone());
        let (made, there) = straight(World::new(), |io| async move { create(&io, "top", &image).await });
        made.expect("the simulator makes a volume");
        let (content, there) = straight(there, |io| async move { read(&io, "top").await });
        let content = Sparse::from_bytes(&content.expect("what was made opens"));
        let align = if direct { 4096 } else { 512 };
        let config = DiskConfig { request_align: align, memory_align: align, ..DiskConfig::default() };
        let path = world.path("top");
        world.add_disk(&path, config, there.disk("top").expect("it was made").view().clone());
        let mix = Mix { granule: more.sector_len as u64, steps: STEPS, ..Mix::default() };
        Image {
            spec: spec("luks", &path, OpenMode { direct, ..WRITABLE }),
            content,
            rules: Rules::default(),
            mix,
        }
    };
    Case::new(name, setup).verified(|world, stage, content| {
        let path = world.path("top");
        let (found, _) = straight(world.clone(), |io| async move { read(&io, &path).await });
        let found = found.map_err(|error| format!("it does not open: {error}"))?;
        match (stage, content) {
            (Stage::Closed | Stage::Recovered, Some(content)) if content.to_vec() != found => {
                Err("another reader sees other bytes than the guest".into())
            }
            _ => Ok(()),
        }
    })
}

async fn read(io: &Io, path: &str) -> Result<Vec<u8>> {
    let node = open(io, &spec("luks", path, OpenMode::default())).await?;
    let content = io.read_bytes("test", node, 0, io.len(node) as usize).await;
    io.close(node).await?;
    content.map(|content| content.to_vec())
}
