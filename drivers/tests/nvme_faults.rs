//! What goes wrong with a controller, and what the driver makes of it.

mod world;

use std::time::Duration;

use drystone_core::buf::{Buf, BufList};
use drystone_core::intent::Errno;
use drystone_drivers::nvme::layout::{SglSupport, Status, opcode};
use drystone_drivers::nvme::sim::{Fault, SimConfig};
use drystone_drivers::nvme::{Answer, NvmeError, Operation, Options, RequestError};
use world::{World, config, options, pattern};

/// The fault for the `nth` I/O command, and none for the others.
fn nth(world: &World, nth: u32, fault: Fault) {
    let mut count = 0;
    world.sim.controller().inject(move |queue, _| {
        count += u32::from(queue > 0);
        if queue > 0 && count == nth { fault } else { Fault::None }
    });
}

#[test]
fn nonsense_from_the_device_has_it_reset_and_loses_nothing() {
    let faults = [
        Fault::WrongCid(0xffff),
        Fault::WrongCid(200),
        Fault::WrongQueue(0),
        Fault::WrongQueue(9),
        Fault::WrongHead(256),
        Fault::WrongHead(0xffff),
        Fault::WrongPhase,
        Fault::Garbage(u64::MAX, u64::MAX),
        Fault::Garbage(0, 0),
        Fault::Garbage(0x1234_5678, 0x9abc_0001_0001),
        Fault::Ignore,
        Fault::Fatal,
    ];
    for fault in faults {
        for place in [1, 7, 20] {
            let mut world = World::new(config(512));
            nth(&world, place, fault);
            for block in 0..20u64 {
                let data = Buf::from(vec![block as u8 + 1; 512]);
                world.submit(block, Operation::Write { fua: false }, block * 512, 512, data);
            }
            let answers = world.settle();
            assert_eq!(answers.len(), 20, "{fault:?}");
            assert!(answers.iter().all(|answer| answer.result.is_ok()), "{fault:?}: {answers:?}");
            let (resets, trouble) = world.device.resets();
            assert_eq!(resets, 1, "{fault:?}: {trouble:?}");
            let stored = world.stored();
            assert!((0..20).all(|block| stored[block * 512..][..512] == [block as u8 + 1; 512]), "{fault:?}");
            world.end();
        }
    }
}

#[test]
fn a_command_answered_twice_has_the_controller_reset() {
    let mut world = World::new(config(512));
    nth(&world, 3, Fault::Twice);
    for block in 0..8u64 {
        world.submit(block, Operation::Read, block * 512, 512, Buf::zeroed(512));
    }
    let answers = world.settle();
    assert!(answers.len() == 8 && answers.iter().all(|answer| answer.result.is_ok()));
    let (resets, trouble) = world.device.resets();
    assert_eq!(resets, 1);
    let trouble = trouble.expect("why it was reset").to_string();
    assert!(trouble.starts_with("queue pair 1: completion queue entry 3, field CID: found "), "{trouble}");
    world.end();
}

#[test]
fn a_lost_command_is_aborted_and_sent_again() {
    let mut world = World::new(config(512));
    nth(&world, 1, Fault::Lose);
    let bytes = pattern(1, 4096);
    world.write(0, Buf::from(bytes.clone())).expect("the second try");
    let counters = world.pair.counters();
    assert_eq!((counters.aborts, counters.retries, world.device.resets().0), (1, 1, 0));
    assert_eq!(world.stored()[..4096], bytes);
    world.end();
}

#[test]
fn a_command_that_is_never_answered_fails_in_the_end() {
    let mut world = World::new(config(512));
    world.sim.controller().inject(|queue, _| if queue > 0 { Fault::Ignore } else { Fault::None });
    assert_eq!(world.read(0, Buf::zeroed(512)).1, Err(RequestError::TimedOut));
    assert_eq!(world.pair.counters().commands, 4);
    world.sim.controller().relent();
    assert_eq!(world.read(0, Buf::zeroed(512)).1, Ok(()));
    world.end();
}

#[test]
fn a_transient_status_is_tried_again_and_a_final_one_is_not() {
    for (status, commands, result) in [
        (Status::INTERNAL, 4, Err(RequestError::Status(Status::INTERNAL))),
        (Status::NOT_READY, 4, Err(RequestError::Status(Status::NOT_READY))),
        (Status::UNRECOVERED_READ, 1, Err(RequestError::Status(Status::UNRECOVERED_READ))),
        (Status::INTERNAL.not_to_retry(), 1, Err(RequestError::Status(Status::INTERNAL.not_to_retry()))),
    ] {
        let mut world = World::new(config(512));
        world.sim.controller().inject(move |queue, _| match queue {
            0 => Fault::None,
            _ => Fault::Status(status),
        });
        assert_eq!(world.read(0, Buf::zeroed(512)).1, result);
        assert_eq!(world.pair.counters().commands, commands, "{status}");
        world.end();
    }
    let mut world = World::new(config(512));
    nth(&world, 1, Fault::Status(Status::INTERNAL));
    assert_eq!(world.read(0, Buf::zeroed(512)).1, Ok(()));
    world.end();
}

#[test]
fn a_media_error_in_one_part_fails_the_request_with_its_buffers() {
    let mut world = World::new(SimConfig { mdts: 1, ..config(512) });
    nth(&world, 5, Fault::Status(Status::UNRECOVERED_READ));
    let (data, result) = world.request(Operation::Read, 0, 256 << 10, Buf::zeroed(256 << 10));
    assert_eq!(result, Err(RequestError::Status(Status::UNRECOVERED_READ)));
    assert_eq!(data.len_bytes(), 256 << 10);
    assert_eq!(result.map_err(RequestError::errno), Err(Errno::EIO));
    assert_eq!(world.read(0, Buf::zeroed(4096)).1, Ok(()));
    world.end();
}

#[test]
fn a_controller_that_is_pulled_out_answers_everything() {
    for place in [1, 10, 30] {
        let mut world = World::new(config(512));
        nth(&world, place, Fault::Remove);
        for block in 0..30u64 {
            world.submit(block, Operation::Read, block * 512, 512, Buf::zeroed(512));
        }
        let answers = world.settle();
        assert_eq!(answers.len(), 30);
        let gone: Vec<&Answer> = answers.iter().filter(|answer| answer.result.is_err()).collect();
        assert!(!gone.is_empty() && gone.iter().all(|answer| answer.result == Err(RequestError::Removed)));
        assert!(answers.iter().all(|answer| answer.data.len_bytes() == 512));
        assert_eq!(world.read(0, Buf::zeroed(512)).1, Err(RequestError::Removed));
        let World { sim, device, pair, .. } = world;
        drop((pair, device));
        assert_eq!((sim.mapped(), sim.violations()), (0, 0));
    }
}

#[test]
fn a_reset_that_was_asked_for_loses_nothing() {
    let mut world = World::new(config(512));
    let bytes = pattern(9, 512 << 10);
    let mut answers = Vec::new();
    for part in 0..64u64 {
        let data = Buf::from(&bytes[part as usize * 8192..][..8192]);
        world.submit(part, Operation::Write { fua: false }, part * 8192, 8192, data);
        if part % 16 == 5 {
            world.device.reset();
        }
        for _ in 0..part % 7 {
            world.round(&mut answers);
        }
    }
    answers.extend(world.settle());
    assert!(answers.len() == 64 && answers.iter().all(|answer| answer.result.is_ok()));
    assert_eq!(world.stored()[..bytes.len()], bytes);
    assert!(world.device.resets().0 > 0);
    world.end();
}

#[test]
fn a_queue_pair_that_goes_with_requests_in_flight_leaves_no_trace() {
    let mut world = World::new(config(512));
    world.sim.controller().inject(|queue, _| if queue > 0 { Fault::Lose } else { Fault::None });
    for block in 0..10u64 {
        let data = world.buffer(4096);
        world.submit(block, Operation::Read, block * 4096, 4096, data);
    }
    let mut answers = Vec::new();
    for _ in 0..50 {
        world.round(&mut answers);
    }
    assert!(answers.is_empty());
    world.end();
}

#[test]
fn an_admin_command_that_is_never_answered_has_the_controller_reset() {
    let mut world = World::new(config(512));
    let mut ignored = false;
    world.sim.controller().inject(move |queue, command| {
        let creates = queue == 0 && command.opcode() == opcode::CREATE_CQ;
        if creates && !std::mem::replace(&mut ignored, true) { Fault::Ignore } else { Fault::None }
    });
    world.submit(1, Operation::Read, 0, 512, Buf::zeroed(512));
    let mut answers = Vec::new();
    while answers.is_empty() {
        world.round(&mut answers);
        world.sim.advance(Duration::from_millis(1));
    }
    assert_eq!(answers[0].result, Ok(()), "after a reset");
    let (resets, trouble) = world.device.resets();
    assert_eq!(resets, 1);
    let expected = NvmeError::Stuck { what: "Create I/O Completion Queue", within: Duration::from_secs(30) };
    assert_eq!(trouble, Some(expected));
    world.end();
}

#[test]
fn a_controller_that_refuses_a_queue_fails_requests_and_not_more() {
    let mut world = World::new(config(512));
    world.sim.controller().inject(|queue, command| {
        match queue == 0 && command.opcode() == opcode::CREATE_SQ {
            true => Fault::Status(Status::INVALID_QUEUE_SIZE),
            false => Fault::None,
        }
    });
    let refused = Err(RequestError::Status(Status::INVALID_QUEUE_SIZE));
    assert_eq!(world.read(0, Buf::zeroed(512)).1, refused);
    assert_eq!(world.read(0, Buf::zeroed(512)).1, refused);
}

/// What happened to a block: what it must read as, or that a write to it failed.
#[derive(Clone, PartialEq)]
enum Known {
    Bytes(Vec<u8>),
    Unknown,
}

const BLOCK: usize = 512;
const BLOCKS: u64 = 512;

/// Random requests that never overlap while in flight, in any order, under random faults, against plain memory.
fn random_run(seed: u64, faults: bool) {
    let mut random = fastrand::Rng::with_seed(seed);
    let config = SimConfig {
        seed: Some(seed),
        mdts: random.u8(0..4),
        shadow_doorbells: random.bool(),
        doorbell_stride: random.u8(0..3),
        sgl: [SglSupport::None, SglSupport::Bytes, SglSupport::Dwords][random.usize(..3)],
        ..config(BLOCK as u32)
    };
    let small = Options { queue_entries: random.u16(2..20), ..options() };
    let mut world = World::with(config, small);
    if faults {
        let mut random = fastrand::Rng::with_seed(seed ^ 0xfa);
        world.sim.controller().inject(move |queue, _| match (queue, random.u32(..100)) {
            (0, _) => Fault::None,
            (_, 0) => Fault::Lose,
            (_, 1) => Fault::Ignore,
            (_, 2) => Fault::WrongCid(random.u16(..)),
            (_, 3) => Fault::Garbage(random.u64(..), random.u64(..)),
            (_, 4) => Fault::WrongPhase,
            (_, 5) => Fault::Status(Status::UNRECOVERED_READ),
            (_, 6) => Fault::Status(Status::NOT_READY),
            (_, 7) => Fault::Status(Status(random.u16(..1 << 15) | 1)),
            _ => Fault::None,
        });
    }
    let mut model: Vec<Known> = vec![Known::Bytes(vec![0; BLOCK]); BLOCKS as usize];
    let mut in_flight: Vec<(u64, Operation, u64, u64, Vec<u8>)> = Vec::new();
    let mut answers = Vec::new();
    for tag in 0..400u64 {
        let start = random.u64(..BLOCKS);
        let blocks = random.u64(1..=(BLOCKS - start).min(40));
        let busy = in_flight.iter().any(|(_, _, at, len, _)| *at < start + blocks && start < at + len);
        if !busy {
            let len = blocks as usize * BLOCK;
            let bytes = pattern(seed ^ tag, len);
            let op = match random.u32(..10) {
                0..4 => Operation::Read,
                4..8 => Operation::Write { fua: random.bool() },
                8 => Operation::WriteZeroes { deallocate: random.bool() },
                _ => Operation::Deallocate,
            };
            let data = match op {
                Operation::Read | Operation::Write { .. } => windows(&world, &mut random, &bytes),
                _ => BufList::new(),
            };
            in_flight.push((tag, op, start, blocks, bytes));
            world.submit(tag, op, start * BLOCK as u64, len as u64, data);
        }
        for _ in 0..random.u32(..6) {
            world.round(&mut answers);
        }
        answers.drain(..).for_each(|answer| judge(seed, &mut model, &mut in_flight, answer));
    }
    for answer in world.settle() {
        judge(seed, &mut model, &mut in_flight, answer);
    }
    assert!(in_flight.is_empty(), "seed {seed}: every request is answered");
    world.sim.controller().relent();
    let stored = world.stored();
    for (block, known) in model.iter().enumerate() {
        if let Known::Bytes(bytes) = known {
            assert!(stored[block * BLOCK..][..BLOCK] == bytes[..], "seed {seed}: block {block}");
        }
    }
    world.end();
}

/// The bytes in windows of the arena and of the heap.
fn windows(world: &World, random: &mut fastrand::Rng, bytes: &[u8]) -> BufList {
    let mut list = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = random.usize(1..=rest.len() / BLOCK) * BLOCK;
        let (now, later) = rest.split_at(len);
        let mut window = match random.bool() {
            true => world.buffer(len + 8192).split_off(random.usize(..16) * BLOCK),
            false => Buf::zeroed(len),
        };
        drop(window.split_off(len));
        window.copy_from_slice(now);
        list.push(window);
        rest = later;
    }
    list.into_iter().collect()
}

/// Compares an answer with the model, and changes that.
fn judge(
    seed: u64,
    model: &mut [Known],
    in_flight: &mut Vec<(u64, Operation, u64, u64, Vec<u8>)>,
    answer: Answer,
) {
    let index = in_flight.iter().position(|(tag, ..)| *tag == answer.tag).expect("answered once");
    let (tag, op, start, blocks, bytes) = in_flight.swap_remove(index);
    let range = start as usize..(start + blocks) as usize;
    let read = answer.data.into_single();
    match (op, answer.result) {
        (Operation::Read, Ok(())) => {
            for (block, read) in range.zip(read.chunks(BLOCK)) {
                if let Known::Bytes(bytes) = &model[block] {
                    assert!(read == &bytes[..], "seed {seed}: read {tag} of block {block}");
                }
            }
        }
        (Operation::Read, Err(_)) => {}
        (_, Err(_)) => model[range].fill(Known::Unknown),
        (Operation::Write { .. }, Ok(())) => {
            for (block, bytes) in range.zip(bytes.chunks(BLOCK)) {
                model[block] = Known::Bytes(bytes.to_vec());
            }
        }
        (_, Ok(())) => model[range].fill(Known::Bytes(vec![0; BLOCK])),
    }
}

#[test]
fn random_requests_are_those_of_plain_memory() {
    (0..60).for_each(|seed| random_run(seed, false));
}

#[test]
fn random_requests_under_faults_lose_nothing() {
    (1000..1060).for_each(|seed| random_run(seed, true));
}
