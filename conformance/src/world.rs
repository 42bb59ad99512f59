//! The world that simulated executors share: disks by path, open leaves, locks.
//!
//! Owns what an intent does. Refuses to know when: that is [`sim`](crate::sim). Breaking the contract of an intent
//! (misaligned direct I/O, an unknown leaf, a write to a leaf that is open for reading) is a panic, because it is a
//! bug in core.

mod transfers;

use std::collections::BTreeMap;

use drystone_core::intent::{
    Action, Errno, Fua, LeafAccess, LeafId, LeafInfo, LeafKind, Location, LockRefused, Outcome, Permissions,
    Preallocation,
};
use fastrand::Rng;

use crate::compute::compute;
use crate::disk::{Change, ChangeId, DiscardEffect, Disk, DiskConfig, Fate, Survival, Unflushed};
use crate::fault::Effect;
use crate::sparse::Sparse;
use transfers::done;

/// Disks, leaves and locks.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// What files are like that are added or created without a configuration of their own.
    pub default_config: DiskConfig,
    /// What the paths of images begin with; empty, unless the files are to be saved in a folder of the host.
    pub folder: String,
    disks: Vec<Disk>,
    paths: BTreeMap<String, usize>,
    leaves: BTreeMap<LeafId, Leaf>,
    next_leaf: u32,
    /// Somebody else changed a file, so that core may ask for what is gone.
    changed_under: bool,
    /// Crashes so far. The bytes that nobody foresees are others after each: a format may tell what was written before by
    /// an identifier that is new each time.
    crashes: u8,
}

#[derive(Clone, Debug)]
struct Leaf {
    storage: Storage,
    access: LeafAccess,
    holds: Permissions,
    shares: Permissions,
}

#[derive(Clone, Copy, Debug)]
enum Storage {
    Disk(usize),
    Null { len: u64, read_zeroes: bool },
}

/// What disks hold at one moment, with all that a crash then decides about.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// See `World`.
    pub(crate) crashes: u8,
    /// The files by their paths.
    pub disks: Vec<FrozenDisk>,
}

/// One disk at one moment.
#[derive(Clone, Debug)]
pub struct FrozenDisk {
    /// Its path.
    pub path: String,
    /// What it is like.
    pub config: DiskConfig,
    /// What every crash keeps.
    pub stable: Sparse,
    /// What a crash may keep, in the order in which it was begun.
    pub unflushed: Vec<Unflushed>,
}

/// What delivering an outcome brings about.
#[derive(Clone, Debug)]
pub(crate) enum Consequence {
    Nothing,
    Completes(usize, Vec<ChangeId>, Fua),
    Flushes(usize),
    LosesFlush(usize),
}

/// An intent's circumstances.
pub(crate) struct Moment<'a> {
    pub(crate) rng: &'a mut Rng,
    pub(crate) fault: Option<Effect>,
}

impl World {
    /// Returns an empty world.
    pub fn new() -> Self {
        Self::default()
    }

    /// A world without disks after a crash.
    pub(crate) fn after(frozen: &Frozen) -> Self {
        Self { crashes: frozen.crashes.wrapping_add(1), ..Self::default() }
    }

    /// The path of a file, by its name in the world's folder.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.folder)
    }

    /// Adds a file with this durable content; replaces one of the same path.
    pub fn add_file(&mut self, path: &str, bytes: &[u8]) {
        self.add_disk(path, self.default_config.clone(), Sparse::from_bytes(bytes));
    }

    /// Adds a disk.
    pub fn add_disk(&mut self, path: &str, config: DiskConfig, content: Sparse) {
        self.paths.insert(path.into(), self.disks.len());
        self.disks.push(Disk::new(config, content));
    }

    /// The disk at a path.
    pub fn disk(&self, path: &str) -> Option<&Disk> {
        self.paths.get(path).map(|index| &self.disks[*index])
    }

    /// The disk at a path, to change its configuration.
    pub fn disk_mut(&mut self, path: &str) -> Option<&mut Disk> {
        self.paths.get(path).map(|index| &mut self.disks[*index])
    }

    /// The bytes of a file, as reads see them.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn export(&self, path: &str) -> Vec<u8> {
        self.disk(path).expect("the file was added").view().to_vec()
    }

    /// The paths of all files.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.paths.keys().map(String::as_str)
    }

    /// Writes every file to its path on the host, holes as holes.
    ///
    /// # Errors
    /// What the host says.
    pub fn save(&self) -> std::io::Result<()> {
        self.paths.iter().try_for_each(|(path, index)| {
            let mut file = std::fs::File::create(path)?;
            self.disks[*index].view().save(&mut file)
        })
    }

    /// Takes every file's bytes from its path on the host: the inverse of [`save`](Self::save).
    ///
    /// # Errors
    /// What the host says.
    pub fn load(&mut self) -> std::io::Result<()> {
        self.paths.iter().try_for_each(|(path, index)| {
            let content = Sparse::from_bytes(&std::fs::read(path)?);
            let disk = &mut self.disks[*index];
            *disk = Disk::new(disk.config.clone(), content);
            Ok(())
        })
    }

    /// Number of sectors, over all disks, that a crash would decide about.
    pub(crate) fn unflushed_sectors(&self, in_flight: &[(usize, Change)]) -> usize {
        let in_flight = in_flight
            .iter()
            .map(|(disk, change)| change.sectors(self.disks[*disk].config.sector))
            .sum::<usize>();
        in_flight + self.disks.iter().map(Disk::unflushed_sectors).sum::<usize>()
    }

    /// What a crash finds now, with what is still in flight.
    pub(crate) fn freeze(&self, in_flight: Vec<(usize, Change)>) -> Frozen {
        let frozen = |(path, index): (&String, &usize)| {
            let mine = in_flight.iter().filter(|(disk, _)| disk == index).map(|(_, change)| change.clone());
            let disk = &self.disks[*index];
            FrozenDisk {
                path: path.clone(),
                config: disk.config.clone(),
                stable: disk.stable().clone(),
                unflushed: disk.unflushed(mine.collect()),
            }
        };
        Frozen { crashes: self.crashes, disks: self.paths.iter().map(frozen).collect() }
    }

    /// A number that differs whenever a disk does, or what of it is durable.
    pub(crate) fn moment(&self) -> u64 {
        self.disks
            .iter()
            .fold(self.paths.len() as u64, |sum, disk| sum.wrapping_mul(31).wrapping_add(disk.moment()))
    }

    /// Makes a change of which nobody waits for the end.
    pub(crate) fn begin_late(&mut self, disk: usize, change: Change) {
        self.disks[disk].begin(change);
    }

    /// Number of leaves that are open.
    pub fn open_leaves(&self) -> usize {
        self.leaves.len()
    }

    /// Whether somebody has a file open.
    pub fn is_open(&self, path: &str) -> bool {
        let disk = self.paths.get(path);
        self.leaves.values().any(|leaf| matches!(leaf.storage, Storage::Disk(open) if Some(&open) == disk))
    }

    /// The file of an action, where it has one.
    pub(crate) fn path_of(&self, action: &Action) -> Option<&str> {
        let leaf = match action {
            Action::Open { location, .. } | Action::Create { location, .. } | Action::Remove { location } => {
                let Location::Path(path) = location else { return None };
                return self.paths.get_key_value(path).map(|(path, _)| path.as_str());
            }
            Action::CopyRange { to, .. } => to,
            Action::Read { leaf, .. }
            | Action::Write { leaf, .. }
            | Action::Flush { leaf }
            | Action::Discard { leaf, .. }
            | Action::WriteZeroes { leaf, .. }
            | Action::SetLen { leaf, .. }
            | Action::BlockStatus { leaf, .. }
            | Action::Close { leaf }
            | Action::Lock { leaf, .. } => leaf,
            _ => return None,
        };
        let Storage::Disk(disk) = self.leaves.get(leaf)?.storage else { return None };
        self.paths.iter().find(|(_, index)| **index == disk).map(|(path, _)| path.as_str())
    }

    /// Does what an intent asks.
    pub(crate) fn carry_out(&mut self, action: Action, moment: Moment<'_>) -> (Outcome, Consequence) {
        let failure = match moment.fault {
            Some(Effect::Fail(errno)) => Err(errno),
            Some(Effect::Shrunk | Effect::Replaced) => {
                self.change_under(&action, moment.fault, moment.rng);
                Ok(())
            }
            _ => Ok(()),
        };
        match action {
            Action::Read { leaf, offset, data } => self.read(leaf, offset, data, moment),
            Action::Write { leaf, offset, data, fua } => self.write(leaf, offset, data, fua, moment),
            Action::Flush { leaf } => self.flush(leaf, failure),
            Action::Discard { leaf, offset, len } => self.discard(leaf, offset, len, moment),
            Action::WriteZeroes { leaf, offset, len, flags } => {
                self.write_zeroes(leaf, offset, len, flags.may_unmap, moment)
            }
            Action::SetLen { leaf, len, preallocation } => self.set_len(leaf, len, preallocation, failure),
            Action::BlockStatus { leaf, offset, len } => {
                let status = failure.map(|()| self.block_status(leaf, offset, len, moment.rng));
                (Outcome::Status(status), Consequence::Nothing)
            }
            Action::CopyRange { from, from_offset, to, to_offset, len } => {
                self.copy((from, from_offset), (to, to_offset), len, moment)
            }
            Action::Open { location, access } => {
                let info = failure.and_then(|()| self.open(location, access));
                (Outcome::Opened(info), Consequence::Nothing)
            }
            Action::Close { leaf } => {
                self.leaves.remove(&leaf).expect("contract: an open leaf is closed, once");
                done(failure)
            }
            Action::Create { location, len, preallocation } => {
                match failure.and_then(|()| self.create(&location, len, preallocation)) {
                    Ok(consequence) => (Outcome::Done(Ok(())), consequence),
                    Err(errno) => done(Err(errno)),
                }
            }
            Action::Remove { location } => done(failure.and_then(|()| self.remove(&location))),
            Action::Lock { leaf, holds, shares } => {
                let failed = match moment.fault {
                    Some(Effect::Refused) => {
                        Err(LockRefused::Conflict { permission: Permissions::WRITE, shared: true })
                    }
                    _ => failure.map_err(LockRefused::Failed),
                };
                let locked = failed.and_then(|()| self.lock(leaf, holds, shares));
                (Outcome::Locked(locked), Consequence::Nothing)
            }
            Action::Compute(work) => (Outcome::Computed(compute(*work)), Consequence::Nothing),
            Action::Sleep { .. } => done(Ok(())),
            Action::Entropy { mut data } => {
                // Random enough for identifiers, and the same in every run, also where something is done again.
                let mut next = self.crashes.wrapping_mul(0x35).wrapping_add(0x9e);
                for piece in data.windows_mut() {
                    piece.fill_with(|| {
                        next = next.wrapping_mul(5).wrapping_add(0x3b);
                        next
                    });
                }
                let result = failure.map(|()| data.len_bytes());
                (Outcome::Moved { data, result }, Consequence::Nothing)
            }
            other => panic!("the simulator does not know {other:?}"),
        }
    }

    /// Somebody else changes the file that an action is about.
    fn change_under(&mut self, action: &Action, effect: Option<Effect>, rng: &mut Rng) {
        let Some(path) = self.path_of(action).map(str::to_owned) else { return };
        self.changed_under = true;
        let disk = self.disk_mut(&path).expect("a file that is open was added");
        let len = disk.view().len();
        if effect == Some(Effect::Shrunk) {
            let end = [0, 512, len / 2, len.saturating_sub(512), len.saturating_sub(1)][rng.usize(..5)];
            disk.begin(Change::SetLen(end.min(len)));
        } else {
            // A file that was made long ahead of what is written to it is a hole from there on, and stays one.
            let stored = disk.view().stored_end() as usize;
            let bytes = match rng.u8(..3) {
                0 => vec![0; stored],
                1 => vec![0xff; stored],
                _ => std::iter::repeat_with(|| rng.u8(..)).take(stored).collect(),
            };
            disk.begin(Change::Write(0, bytes));
        }
    }

    /// Delivers an outcome at the moment `now`; `submitted` is when its intent came.
    pub(crate) fn settle(&mut self, consequence: Consequence, submitted: u64, now: u64, rng: &mut Rng) {
        match consequence {
            Consequence::Nothing => {}
            Consequence::Completes(disk, changes, fua) => {
                for change in changes {
                    self.disks[disk].complete(change, now);
                    if fua == Fua::Yes {
                        self.disks[disk].harden_one(change);
                    }
                }
            }
            Consequence::Flushes(disk) => self.disks[disk].flush(submitted),
            Consequence::LosesFlush(disk) => self.disks[disk].fail_flush(submitted, rng),
        }
    }

    /// Stops the power: leaves and locks are gone, and of each disk what survives is left.
    pub(crate) fn crash(&mut self, in_flight: Vec<(usize, Change)>, survival: Survival) {
        self.leaves.clear();
        let mut in_flight: Vec<(usize, Option<Change>)> =
            in_flight.into_iter().map(|(disk, change)| (disk, Some(change))).collect();
        let mut fate = Fate::new(survival);
        for (index, disk) in self.disks.iter_mut().enumerate() {
            let mine = in_flight.iter_mut().filter(|(disk, _)| *disk == index);
            disk.crash(mine.filter_map(|(_, change)| change.take()).collect(), &mut fate);
        }
    }

    /// Ends in order: what reads see is stored, and leaves and locks are gone.
    pub(crate) fn shut_down(&mut self) {
        self.leaves.clear();
        self.disks.iter_mut().for_each(Disk::shut_down);
    }

    /// The change that an intent in flight may make before the power goes.
    pub(crate) fn change_of(&self, action: &Action) -> Option<(usize, Change)> {
        let (leaf, change) = match action {
            Action::Write { leaf, offset, data, .. } => {
                let mut bytes = vec![0; data.len_bytes()];
                data.copy_out(0, &mut bytes);
                (leaf, Change::Write(*offset, bytes))
            }
            Action::WriteZeroes { leaf, offset, len, flags } => {
                (leaf, Change::Zero(*offset..offset + len, flags.may_unmap))
            }
            Action::SetLen { leaf, len, .. } => (leaf, Change::SetLen(*len)),
            // What cannot discard answers at once; what promises nothing may do anything.
            Action::Discard { leaf, offset, len } => {
                let Storage::Disk(disk) = self.leaf(*leaf).storage else { return None };
                let Disk { config, .. } = &self.disks[disk];
                let end = (offset + len).min(self.disks[disk].view().len());
                if config.discard != DiscardEffect::Zeroes || *offset >= end {
                    return None;
                }
                (leaf, Change::Zero(*offset..end, true))
            }
            _ => return None,
        };
        match self.leaf(*leaf).storage {
            Storage::Disk(disk) => Some((disk, change)),
            Storage::Null { .. } => None,
        }
    }

    fn open(&mut self, location: Location, access: LeafAccess) -> Result<LeafInfo, Errno> {
        let storage = match location {
            Location::Path(path) => Storage::Disk(*self.paths.get(&path).ok_or(Errno::ENOENT)?),
            Location::Null { len, read_zeroes } => Storage::Null { len, read_zeroes },
            other => panic!("the simulator cannot open {other:?}"),
        };
        let read_only = matches!(storage, Storage::Disk(disk) if self.disks[disk].config.read_only);
        if access.writable && read_only {
            return Err(Errno::EACCES);
        }
        let leaf = Leaf { storage, access, holds: Permissions::NONE, shares: Permissions::ALL };
        let (request_align, memory_align, transfer_max) = self.align(&leaf);
        let config = match storage {
            Storage::Disk(disk) => &self.disks[disk].config,
            Storage::Null { .. } => &self.default_config,
        };
        let (kind, len) = match storage {
            Storage::Disk(disk) => (config.kind, self.disks[disk].view().len()),
            Storage::Null { len, .. } => (LeafKind::Null, len),
        };
        let id = LeafId(self.next_leaf);
        let info = LeafInfo {
            leaf: id,
            len,
            request_align: request_align as u32,
            memory_align: memory_align as u32,
            preferred_size: 0,
            transfer_max,
            kind,
            grows_as_zeroes: config.grows_as_zeroes,
            discard_zeroes: config.discard == DiscardEffect::Zeroes,
            fast_zeroes: config.zeroes_align.is_some(),
        };
        self.next_leaf += 1;
        self.leaves.insert(id, leaf);
        Ok(info)
    }

    fn create(
        &mut self,
        location: &Location,
        len: u64,
        preallocation: Preallocation,
    ) -> Result<Consequence, Errno> {
        let Location::Path(path) = location else { return Err(Errno::EINVAL) };
        if self.disk(path).is_none() {
            self.add_disk(path, self.default_config.clone(), Sparse::default());
        }
        let index = self.paths[path];
        let disk = &mut self.disks[index];
        if disk.config.read_only {
            return Err(Errno::EACCES);
        }
        if preallocation != Preallocation::Off && disk.is_full_after(len) {
            return Err(Errno::ENOSPC);
        }
        let mut changes = vec![disk.begin(Change::SetLen(0)), disk.begin(Change::SetLen(len))];
        if preallocation == Preallocation::Full {
            changes.push(disk.begin(Change::Zero(0..len, false)));
        }
        Ok(Consequence::Completes(index, changes, Fua::No))
    }

    fn remove(&mut self, location: &Location) -> Result<(), Errno> {
        let Location::Path(path) = location else { return Err(Errno::EINVAL) };
        self.paths.remove(path).map(|_| ()).ok_or(Errno::ENOENT)
    }

    fn lock(&mut self, id: LeafId, holds: Permissions, shares: Permissions) -> Result<(), LockRefused> {
        let Storage::Disk(mine) = self.leaf(id).storage else { return Ok(()) };
        let others = self.leaves.iter().filter(|(other, _)| **other != id);
        let others: Vec<&Leaf> = others
            .filter(|(_, leaf)| matches!(leaf.storage, Storage::Disk(disk) if disk == mine))
            .map(|(_, leaf)| leaf)
            .collect();
        let single = || (0..4).map(|bit| Permissions(1 << bit));
        // First what we hold and others do not share, then what others hold and we do not share.
        for permission in single().filter(|permission| holds.contains(*permission)) {
            if others.iter().any(|other| !other.shares.contains(permission)) {
                return Err(LockRefused::Conflict { permission, shared: false });
            }
        }
        for permission in single().filter(|permission| !shares.contains(*permission)) {
            if others.iter().any(|other| other.holds.contains(permission)) {
                return Err(LockRefused::Conflict { permission, shared: true });
            }
        }
        let leaf = self.leaves.get_mut(&id).expect("looked up above");
        (leaf.holds, leaf.shares) = (holds, shares);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READS: Permissions = Permissions::CONSISTENT_READ;
    const WRITES: Permissions = Permissions::CONSISTENT_READ.with(Permissions::WRITE);

    fn act(world: &mut World, action: Action) -> Outcome {
        world.carry_out(action, Moment { rng: &mut Rng::with_seed(0), fault: None }).0
    }

    fn open(world: &mut World) -> LeafId {
        let access = LeafAccess { writable: true, ..LeafAccess::default() };
        match act(world, Action::Open { location: Location::Path("disk".into()), access }) {
            Outcome::Opened(Ok(info)) => info.leaf,
            other => panic!("{other:?}"),
        }
    }

    fn lock(
        world: &mut World,
        leaf: LeafId,
        holds: Permissions,
        shares: Permissions,
    ) -> Result<(), LockRefused> {
        match act(world, Action::Lock { leaf, holds, shares }) {
            Outcome::Locked(result) => result,
            other => panic!("{other:?}"),
        }
    }

    /// The refusals are those of qemu-io 10.0 on an image that another qemu-io has open: for writing, an opener fails
    /// to get the shared "write" lock; for reading, a writer fails to get the "write" lock.
    #[test]
    fn locks_keep_writers_apart_as_qemu_does() {
        let mut world = World::new();
        world.add_file("disk", &[0; 512]);
        let (first, second) = (open(&mut world), open(&mut world));
        let conflict = |shared| Err(LockRefused::Conflict { permission: Permissions::WRITE, shared });
        lock(&mut world, first, WRITES, READS).expect("the first");
        assert_eq!(lock(&mut world, second, READS, READS), conflict(true));
        lock(&mut world, first, READS, READS).expect("gives up writing");
        lock(&mut world, second, READS, READS).expect("readers share");
        assert_eq!(lock(&mut world, second, WRITES, READS), conflict(false));
        lock(&mut world, second, Permissions::NONE, Permissions::ALL).expect("force-share");
        lock(&mut world, first, WRITES, READS).expect("nobody minds");
        act(&mut world, Action::Close { leaf: first });
        lock(&mut world, second, WRITES, READS).expect("locks go with their leaf");
    }

    #[test]
    fn a_copy_goes_from_leaf_to_leaf() {
        let mut world = World::new();
        world.add_file("disk", &[[1; 512], [2; 512]].concat());
        let leaf = open(&mut world);
        let copy =
            |from_offset, len| Action::CopyRange { from: leaf, from_offset, to: leaf, to_offset: 4096, len };
        match act(&mut world, copy(512, 1024)) {
            Outcome::Moved { result, .. } => assert_eq!(result, Ok(512), "the source ends"),
            other => panic!("{other:?}"),
        }
        assert_eq!(world.export("disk")[4096..], [2; 512]);
        world.disk_mut("disk").expect("added").config.copies = false;
        match act(&mut world, copy(0, 1)) {
            Outcome::Moved { result, .. } => assert_eq!(result, Err(Errno::ENOTSUP)),
            other => panic!("{other:?}"),
        }
    }
}
