//! Commands that show something: `alloc`, `map`, `length`, `info`.

use drystone_core::format::qcow2::Qcow2;
use drystone_core::graph::{Driver, Role};
use drystone_core::intent::LeafKind;
use drystone_tools::img::info::qcow2_facts;
use drystone_tools::io::info::Info;
use drystone_tools::io::report;

use crate::print;
use crate::shell::{Outcome, Shell, note_broken};

/// What `length` counts in.
const SECTOR: u64 = 512;

/// Drivers that are protocols as well as formats, as far as names go.
const PROTOCOLS: [&str; 8] =
    ["file", "host_device", "nbd", "null-co", "null-aio", "nvme", "blkdebug", "blkverify"];

pub fn length(shell: &Shell) -> Outcome {
    let len = shell.opened().image.len().next_multiple_of(SECTOR);
    print(&format!("{}\n", report::amount(len as f64)));
    Outcome::Done
}

/// Bytes from `offset` on that are alike, and whether the image itself holds them.
async fn held(shell: &Shell, offset: u64, len: u64) -> Result<(u64, bool), String> {
    let node = shell.opened().image.node();
    let asked = shell.client.run(async move |io| {
        let status = io.status(node, offset, len, None).await?;
        // A leaf without storage holds nothing.
        let leaf = status.place.and_then(|(leaf, _)| io.leaf_info(leaf));
        let stored = leaf.is_none_or(|leaf| leaf.kind != LeafKind::Null);
        Ok((status.len, stored && status.allocated && status.depth == 0))
    });
    shell.wait(asked).await.map_err(|error| {
        note_broken(&shell.broken, &error);
        error.errno().to_string()
    })
}

pub async fn alloc(shell: &Shell, offset: u64, count: u64) -> Outcome {
    let size = shell.opened().image.len();
    let whole = size.next_multiple_of(SECTOR);
    let end = offset.saturating_add(count).min(whole).max(offset);
    let (mut at, mut sum) = (offset, 0);
    while at < end {
        // What the last sector lacks is held as the rest of it is.
        let asked = end.min(size).saturating_sub(at).max(1);
        match held(shell, at.min(size.saturating_sub(1)), asked).await {
            Ok((len, holds)) => {
                let next = if at + len >= size { end } else { at + len };
                sum += if holds { next - at } else { 0 };
                at = next;
            }
            Err(why) => {
                print(&format!("is_allocated failed: {why}\n"));
                return Outcome::Failed;
            }
        }
    }
    print(&report::allocated(sum, end - offset, offset));
    Outcome::Done
}

pub async fn map(shell: &Shell) -> Outcome {
    let size = shell.opened().image.len();
    let mut run: Option<(bool, u64, u64)> = None;
    let mut at = 0;
    while at < size {
        let (len, holds) = match held(shell, at, size - at).await {
            Ok(found) => found,
            Err(why) => {
                shell.report(&format!("Failed to get allocation status: {why}"));
                return Outcome::Failed;
            }
        };
        let end = if at + len == size { size.next_multiple_of(SECTOR) } else { at + len };
        run = match run {
            Some((same, start, _)) if same == holds => Some((holds, start, end)),
            other => {
                show(other);
                Some((holds, at, end))
            }
        };
        at = end;
    }
    show(run);
    Outcome::Done
}

fn show(run: Option<(bool, u64, u64)>) {
    if let Some((holds, start, end)) = run {
        print(&report::range(holds, start, end - start));
    }
}

pub async fn info(shell: &Shell) -> Outcome {
    let node = shell.opened().top();
    let found = shell.client.run(async move |io| {
        let driver = io.driver(node);
        let name = io.driver_name(node);
        let formats = if PROTOCOLS.contains(&name) { vec![name; 2] } else { vec![name] };
        let mut info = Info { formats, clusters: None, specific: None };
        let mut below = node;
        // What a filter knows of clusters is what its file knows.
        while io.driver(below).is_some_and(|driver| driver.is_filter())
            && let Some(file) = io.edge(below, Role::File)
        {
            below = file;
        }
        let qcow2 = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qcow2>());
        if let (Some(qcow2), Some(file)) = (qcow2, io.edge(node, Role::File)) {
            info.specific = Some(qcow2_facts(&io, qcow2, file).await?);
        } else if let Some(driver) = &driver {
            info.specific = driver.facts().specific;
        }
        info.clusters = match io.driver(below) {
            Some(driver) => clusters_of(driver.as_ref()),
            None if io.driver_name(below) == "null-co" => None,
            None => Some((0, 0)),
        };
        Ok(info)
    });
    match shell.wait(found).await {
        Ok(info) => {
            print(&info.render());
            if info.clusters.is_some() { Outcome::Done } else { Outcome::Failed }
        }
        Err(error) => {
            shell.report(&error.to_string());
            Outcome::Failed
        }
    }
}

/// Bytes of a cluster, 0 where the format has none, and where a machine's state is; nothing of formats that the reference asks in vain.
fn clusters_of(driver: &dyn Driver) -> Option<(u64, u64)> {
    if let Some(qcow2) = driver.as_any().downcast_ref::<Qcow2>() {
        let header = qcow2.header();
        return Some((header.cluster_bits.size(), header.vmstate_offset()));
    }
    let facts = driver.facts();
    (!facts.tells_no_state).then(|| (facts.cluster_size.unwrap_or(0), 0))
}
