//! Images that QEMU's tools make, and what they say of ours.
//!
//! Refuses to know any format: `qemu-img` and `qemu-io` are asked for everything. Start at [`Recipe`].

use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use drystone_core::error::FaultKind;
use drystone_core::format::{CheckReport, check};
use drystone_core::graph::open::{NodeSpec, open};
use tempfile::TempDir;

use crate::model::Rules;
use crate::scenario::Mix;
use crate::sim::{SECRETS, Sim};
use crate::sparse::Sparse;
use crate::suite::{Case, Image, Stage};
use crate::world::World;

/// A folder of the host with the files of a world, for tools that know only files.
pub struct Folder(TempDir);

impl Folder {
    /// Returns an empty folder, which goes away when dropped.
    ///
    /// # Panics
    /// When the host has no room for one.
    pub fn new() -> Self {
        Self(TempDir::new().expect("the host has a folder for temporary files"))
    }

    /// Writes the files of a world, by their names without its folder.
    ///
    /// # Errors
    /// What the host says.
    pub fn of(world: &World) -> std::io::Result<Self> {
        let folder = Self::new();
        for path in world.paths() {
            let name = path.strip_prefix(&world.folder).unwrap_or(path);
            let mut file = std::fs::File::create(folder.path().join(name))?;
            world.disk(path).expect("a path of the world").view().save(&mut file)?;
        }
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs a command line, words apart, in the folder; returns what it prints.
    ///
    /// # Errors
    /// With all it said, when it fails.
    pub fn run(&self, words: &[&str]) -> Result<String, String> {
        let (code, output) = self.status(words)?;
        if code == 0 { Ok(output) } else { Err(format!("{words:?} ended with {code}: {output}")) }
    }

    fn status(&self, words: &[&str]) -> Result<(i32, String), String> {
        let output = Command::new(words[0]).args(&words[1..]).current_dir(self.path()).output();
        let output = output.map_err(|error| format!("{}: {error}", words[0]))?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Has `qemu-img check` look at an image; space that nothing points to is in order where `leaks` says so.
    ///
    /// # Errors
    /// With its report.
    pub fn check(&self, name: &str, format: &str, leaks: bool) -> Result<(), String> {
        // The reference replays a log only where it may write.
        let repair: &[&str] = if format == "vhdx" { &["-r", "all"] } else { &[] };
        let image = self.words_for(name, format);
        let image: Vec<&str> = image.iter().map(String::as_str).collect();
        match self.status(&[&["qemu-img", "check"], repair, &image].concat())? {
            // 63: the reference has no check for the format.
            (0 | 63, _) => Ok(()),
            (3, _) if leaks => Ok(()),
            (2, said) if leaks && said.lines().filter(|line| line.starts_with("ERROR")).all(does_no_harm) => {
                Ok(())
            }
            (code, said) => Err(format!("qemu-img check of {name} ended with {code}: {said}")),
        }
    }

    /// What a guest sees of an image, as `qemu-img convert` reads it, with its backing chain.
    ///
    /// # Errors
    /// What the tool says.
    pub fn guest(&self, name: &str, format: &str) -> Result<Sparse, String> {
        const FLAT: &str = ".guest-view.raw";
        let image = self.words_for(name, format);
        let image: Vec<&str> = image.iter().map(String::as_str).collect();
        self.run(&[&["qemu-img", "convert", "-O", "raw"], &image[..], &[FLAT]].concat())?;
        let flat = self.path().join(FLAT);
        let bytes = std::fs::read(&flat).and_then(|bytes| std::fs::remove_file(&flat).map(|()| bytes));
        Ok(Sparse::from_bytes(&bytes.map_err(|error| error.to_string())?))
    }

    /// What a command line says of an image: its format and name, and with what an encrypted one opens.
    fn words_for(&self, name: &str, format: &str) -> Vec<String> {
        let mut head = [0; HEAD_LEN];
        // A file that is not there is the tool's to complain about.
        let read = std::fs::File::open(self.path().join(name)).and_then(|mut file| file.read(&mut head));
        let Some(option) = secret_option(format, &head[..read.unwrap_or(0)]) else {
            return ["-f", format, name].map(str::to_owned).to_vec();
        };
        let (id, passphrase) = SECRETS[0];
        let object = format!("secret,id={id},data={passphrase}");
        let image = format!("driver={format},{option}={id},file.filename={name}");
        ["--object", &object, "--image-opts", &image].map(str::to_owned).to_vec()
    }

    /// The files in it.
    ///
    /// # Errors
    /// What the host says.
    pub fn files(&self) -> std::io::Result<Vec<(String, Sparse)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(self.path())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            files.push((name, Sparse::from_bytes(&std::fs::read(entry.path())?)));
        }
        files.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Ok(files)
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes of an image that tell whether it is encrypted.
pub(crate) const HEAD_LEN: usize = 36;

/// The option that names the secret of an image, by its first bytes, if it has one. Source: \[qcow2\] "Header", crypt_method.
pub(crate) fn secret_option(format: &str, head: &[u8]) -> Option<&'static str> {
    match format {
        "luks" => Some("key-secret"),
        "qcow2" => {
            head.get(32..HEAD_LEN).filter(|method| **method == [0, 0, 0, 2]).map(|_| "encrypt.key-secret")
        }
        _ => None,
    }
}

/// How QEMU's tools make an image.
pub struct Recipe {
    /// The name of the case.
    pub name: String,
    /// Command lines, words apart, run in one folder.
    pub commands: Vec<Vec<String>>,
    /// The file that is opened.
    pub top: String,
    /// Its format, as QEMU names it.
    pub format: String,
    /// Whether it must be in order after a crash, before anybody opens it.
    pub check_crashed: bool,
    /// What is allowed.
    pub rules: Rules,
    /// The requests that suit it.
    pub mix: Mix,
}

impl Recipe {
    /// Returns the recipe of an image, each command as one line of words between blanks; a word in single quotes may
    /// hold blanks.
    pub fn new(name: &str, format: &str, top: &str, commands: &[&str]) -> Self {
        Self {
            name: name.into(),
            commands: commands.iter().map(|line| words(line)).collect(),
            top: top.into(),
            format: format.into(),
            check_crashed: true,
            rules: Rules::default(),
            mix: Mix::default(),
        }
    }

    /// Makes the image, and a case for the suite of it. `spec` says how to open `top`, whose path in the world it is
    /// given. QEMU checks every image that is left behind, and must see in a closed one what our guest saw.
    ///
    /// # Errors
    /// What the tools say.
    pub fn case(self, spec: impl Fn(&World, &str) -> NodeSpec + 'static) -> Result<Case, String> {
        let folder = Folder::new();
        for command in &self.commands {
            folder.run(&command.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        let content = folder.guest(&self.top, &self.format)?;
        let files = folder.files().map_err(|error| error.to_string())?;
        let (top, rules, mix) = (self.top.clone(), self.rules, self.mix);
        let spec = Rc::new(spec);
        let (spec_again, top_again, check_crashed) = (Rc::clone(&spec), self.top.clone(), self.check_crashed);
        let quickly = move |world: &World, stage, _: Option<&Sparse>| {
            if stage == Stage::Crashed && !check_crashed {
                return Ok(());
            }
            own_check(world.clone(), spec_again(world, &world.path(&top_again)), stage != Stage::Closed)
        };
        let setup = move |world: &mut World| {
            for (name, file) in &files {
                let path = world.path(name);
                world.add_disk(&path, world.default_config.clone(), file.clone());
            }
            let spec = spec(world, &world.path(&top));
            Image { spec, content: content.clone(), rules, mix: mix.clone() }
        };
        let (top, format) = (self.top, self.format);
        let case = Case::new(self.name, setup).verified_quickly(quickly);
        Ok(case.verified(move |world: &World, stage, content: Option<&Sparse>| {
            let folder = Folder::of(world).map_err(|error| error.to_string())?;
            if format != "raw" && (check_crashed || stage != Stage::Crashed) {
                folder.check(&top, &format, stage != Stage::Closed)?;
            }
            let Some(content) = content else { return Ok(()) };
            match folder.guest(&top, &format)? == *content {
                true => Ok(()),
                false => Err("qemu-img reads other bytes than our guest".into()),
            }
        }))
    }
}

/// Has core's own check, which is held against `qemu-img check` elsewhere, look at an image on the simulator: thousands
/// of times as fast. A format that has no check is in order.
pub(crate) fn own_check(world: World, mut spec: NodeSpec, leaks: bool) -> Result<(), String> {
    spec.mode.writable = false;
    let checked = Sim::new(0, world).run_job(async move |io| {
        let node = open(&io, &spec).await?;
        let mut findings = Vec::new();
        let report = check(&io, node, &mut |line| findings.push(line), &|_, _| {}).await;
        io.close(node).await?;
        report.map(|report| (report, findings))
    });
    let (report, findings) = match checked.map_err(|error| error.to_string())? {
        Ok(checked) => checked,
        Err(error) if error.kind() == FaultKind::Unsupported => return Ok(()),
        Err(error) => return Err(format!("our check: {error}")),
    };
    let report = with_leaks(report, &findings);
    let fine = report.corruptions == 0 && report.check_errors == 0 && (leaks || report.leaks == 0);
    if fine { Ok(()) } else { Err(format!("our check: {report:?}\n{}", findings.join("\n"))) }
}

/// A report in which leaks that the format's check calls errors are leaks.
pub(crate) fn with_leaks(mut report: CheckReport, findings: &[String]) -> CheckReport {
    let leaks = findings.iter().filter(|line| counts_a_leak(line)).count() as u64;
    report.corruptions -= leaks;
    report.leaks += leaks;
    report
}

/// Whether a line of a check is about a leak, or what the reference calls an error and a crash may leave.
fn does_no_harm(line: &str) -> bool {
    counts_a_leak(line) || line.starts_with("ERROR space leaked at the end of the image ")
}

/// Whether an error that a check counts is none: a VDI image's way to say that a block is lost, because its header counts more
/// than the map names; or a Parallels image's mark that it was not closed.
fn counts_a_leak(line: &str) -> bool {
    if line == "ERROR image was not closed correctly" {
        return true;
    }
    let numbers = line.strip_prefix("ERROR: allocated blocks mismatch, is ");
    let numbers = numbers.and_then(|rest| rest.split_once(", should be "));
    numbers.is_some_and(|(named, counted)| match (named.parse::<u64>(), counted.parse::<u64>()) {
        (Ok(named), Ok(counted)) => named < counted,
        _ => false,
    })
}

/// Splits a line at blanks, but not within single quotes.
pub(crate) fn words(line: &str) -> Vec<String> {
    let quoted = line.split('\'').enumerate();
    quoted
        .flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        })
        .collect()
}
