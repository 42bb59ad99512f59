//! The driver on a simulated controller that moves step by step.

mod world;

use drystone_core::buf::{Buf, BufList};
use drystone_core::intent::Errno;
use drystone_drivers::nvme::layout::{
    Arbitration, DataPointer, Priority, Sgl, SglKind, SglSupport, Status, offset, opcode,
};
use drystone_drivers::nvme::sim::{Fault, Sim, SimConfig, SimNamespace};
use drystone_drivers::nvme::{
    About, Device, NvmeError, Operation, Options, QueuePair, Request, RequestError,
};
use world::{World, config, options, pattern};

#[test]
fn a_controller_is_brought_up_and_shut_down() {
    let world = World::new(SimConfig {
        namespaces: vec![SimNamespace::new(512, 1 << 20), SimNamespace::new(4096, 2 << 20)],
        ..SimConfig::default()
    });
    let identity = world.device.identity();
    assert_eq!((identity.model.as_str(), identity.serial.as_str()), ("Simulated controller", "SIM0"));
    assert_eq!((world.device.queues_granted(), world.device.namespaces()), (8, vec![1, 2]));
    let second = world.device.namespace(2).expect("active");
    assert_eq!((second.block(), second.len_bytes()), (4096, 2 << 20));
    assert_eq!(world.device.namespace(3), Err(NvmeError::NoNamespace { id: 3 }));
    world.end();
}

#[test]
fn every_command_does_what_it_says() {
    for block in [512, 4096] {
        let mut world = World::new(config(block));
        let bytes = pattern(1, 64 << 10);
        world.write(8192, Buf::from(bytes.clone())).expect("a write");
        let (read, result) = world.read(8192, Buf::zeroed(64 << 10));
        assert_eq!((read == bytes, result), (true, Ok(())), "{block}");
        let compare = |world: &mut World, bytes: Vec<u8>| {
            let len = bytes.len() as u64;
            world.request(Operation::Compare, 8192, len, Buf::from(bytes)).1
        };
        assert_eq!(compare(&mut world, bytes.clone()), Ok(()));
        let mut other = bytes.clone();
        other[5000] ^= 1;
        assert_eq!(compare(&mut world, other), Err(RequestError::Status(Status::COMPARE_FAILED)));
        let zeroes = Operation::WriteZeroes { deallocate: true };
        assert_eq!(world.request(zeroes, 8192, 4096, BufList::new()).1, Ok(()));
        assert_eq!(world.request(Operation::Deallocate, 16384, 8192, BufList::new()).1, Ok(()));
        assert_eq!(world.request(Operation::Flush, 0, 0, BufList::new()).1, Ok(()));
        let mut expected = bytes;
        expected[..4096].fill(0);
        expected[8192..16384].fill(0);
        assert_eq!(world.stored()[8192..8192 + expected.len()], expected);
        world.end();
    }
}

#[test]
fn flags_arrive_at_the_controller() {
    let mut world = World::new(SimConfig { log: true, ..config(512) });
    world.request(Operation::Write { fua: true }, 512, 512, Buf::zeroed(512)).1.expect("a write");
    world.request(Operation::WriteZeroes { deallocate: true }, 0, 512, BufList::new()).1.expect("zeroes");
    world.request(Operation::WriteZeroes { deallocate: false }, 0, 512, BufList::new()).1.expect("zeroes");
    let seen: Vec<_> = world
        .sim
        .controller()
        .log()
        .iter()
        .map(|(_, command)| (command.opcode(), command.dword(12)))
        .collect();
    let expected = [(opcode::WRITE, 1 << 30), (opcode::WRITE_ZEROES, 1 << 25), (opcode::WRITE_ZEROES, 0)];
    assert_eq!(seen, expected);
    world.end();
}

#[test]
fn what_the_controller_lacks_is_not_sent() {
    let mut world =
        World::new(SimConfig { optional_commands: 0, write_cache: false, log: true, ..config(512) });
    let unsupported = Err(RequestError::Unsupported);
    assert_eq!(world.request(Operation::Compare, 0, 512, Buf::zeroed(512)).1, unsupported);
    assert_eq!(world.request(Operation::Deallocate, 0, 512, BufList::new()).1, unsupported);
    let zeroes = Operation::WriteZeroes { deallocate: false };
    assert_eq!(world.request(zeroes, 0, 512, BufList::new()).1, unsupported);
    // There is nothing to flush.
    assert_eq!(world.request(Operation::Flush, 0, 0, BufList::new()).1, Ok(()));
    assert!(world.sim.controller().log().is_empty());
    world.end();
}

#[test]
fn requests_outside_of_the_namespace_are_refused() {
    let mut world = World::new(config(4096));
    let refused = Err(RequestError::OutOfRange);
    assert_eq!(world.write(1 << 20, Buf::zeroed(4096)), refused);
    assert_eq!(world.write((1 << 20) - 4096, Buf::zeroed(8192)), refused);
    assert_eq!(world.write(512, Buf::zeroed(4096)), refused);
    assert_eq!(world.write(0, Buf::zeroed(512)), refused);
    assert_eq!(world.write(u64::MAX - 4095, Buf::zeroed(4096)), refused);
    assert_eq!(world.request(Operation::Read, 0, 8192, Buf::zeroed(4096)).1, refused);
    assert_eq!(world.request(Operation::Deallocate, 4096, u64::MAX - 4095, BufList::new()).1, refused);
    assert_eq!(world.read(0, Buf::empty()).1, Ok(()));
    world.end();
}

#[test]
fn large_requests_become_several_commands() {
    // 128 KiB a command.
    let mut world = World::new(SimConfig { mdts: 5, log: true, ..config(512) });
    let bytes = pattern(2, 1 << 20);
    let mut data = world.buffer(1 << 20);
    data.copy_from_slice(&bytes);
    world.write(0, data).expect("a write of all there is");
    assert_eq!(world.sim.controller().log().len(), 8);
    assert_eq!(world.stored(), bytes);
    let data = world.buffer(1 << 20);
    assert_eq!(world.read(0, data), (bytes, Ok(())));
    assert_eq!(world.pair.counters().copied, 0, "buffers of the arena are not copied");
    world.end();
}

#[test]
fn buffers_of_other_memory_are_copied_and_counted() {
    let mut world = World::new(config(512));
    let bytes = pattern(3, 300 << 10);
    world.write(512, Buf::from(bytes.clone())).expect("a write");
    assert_eq!(world.read(512, Buf::zeroed(300 << 10)), (bytes, Ok(())));
    assert_eq!(world.pair.counters().copied, 600 << 10);
    world.end();
}

#[test]
fn windows_that_prps_cannot_name_at_once_are_several_commands() {
    let mut world = World::new(SimConfig { log: true, ..config(512) });
    let bytes = pattern(4, 512 * 40);
    let mut list = Vec::new();
    let mut rest = world.buffer(64 << 10);
    // Windows with gaps, that begin and end within pages, and one elsewhere.
    for (gap, blocks) in [(512, 1), (1024, 9), (0, 8), (3584, 14)] {
        drop(rest.split_to(gap));
        list.push(rest.split_to(blocks * 512));
    }
    drop(rest);
    list.push(Buf::zeroed(8 * 512));
    let mut data: BufList = list.into_iter().collect();
    data.copy_in(0, &bytes);
    world.write(4096, data).expect("a write");
    assert_eq!(world.stored()[4096..4096 + bytes.len()], bytes);
    let commands = world.sim.controller().log().len();
    assert!((2..=5).contains(&commands), "{commands} commands");
    assert_eq!(world.pair.counters().copied, 8 * 512);
    world.end();
}

#[test]
fn an_sgl_names_any_windows_in_one_command() {
    // Offset of the first window; whether the controller takes that.
    for (sgl, first, taken) in [
        (SglSupport::Bytes, 1, true),
        (SglSupport::Bytes, 512, true),
        (SglSupport::Dwords, 4, true),
        (SglSupport::Dwords, 2, false),
        (SglSupport::None, 4, false),
    ] {
        let mut world = World::new(SimConfig { log: true, sgl, ..config(512) });
        let bytes = pattern(5, 60 * 512);
        let mut list = Vec::new();
        let mut rest = world.buffer(64 << 10);
        // Windows with gaps, that begin and end within pages.
        for (gap, len) in [(first, 9 * 512), (1024, 20 * 512), (8, 31 * 512)] {
            drop(rest.split_to(gap));
            list.push(rest.split_to(len));
        }
        drop(rest);
        let mut data: BufList = list.into_iter().collect();
        data.copy_in(0, &bytes);
        world.write(4096, data).expect("a write");
        assert_eq!(world.stored()[4096..4096 + bytes.len()], bytes, "{sgl:?} {first}");
        let commands = world.sim.controller().log().len();
        assert_eq!(commands == 1 && world.pair.counters().copied == 0, taken, "{sgl:?} {first}");
        // One window, however long, is one data block in the command.
        let mut window = world.buffer(64 << 10);
        drop(window.split_to(first));
        drop(window.split_off(60 * 512));
        let (read, result) = world.read(4096, window);
        assert_eq!((read == bytes, result), (true, Ok(())), "{sgl:?} {first}");
        let last = world.sim.controller().log().last().expect("a read").1.data();
        let block = matches!(last, Some(DataPointer::Sgl(Sgl { kind: SglKind::Block, .. })));
        assert_eq!(block, taken, "{sgl:?} {first}");
        world.end();
    }
}

#[test]
fn an_sgl_that_does_not_fit_its_page_is_several_commands() {
    let mut world = World::new(SimConfig { log: true, sgl: SglSupport::Bytes, mdts: 0, ..config(512) });
    let bytes = pattern(6, 300 * 512);
    let mut rest = world.buffer(300 * 1024);
    // Every other block of the arena: 300 windows, where a page holds 256 descriptors.
    let take = |_| {
        let window = rest.split_to(512);
        drop(rest.split_to(512));
        window
    };
    let mut data: BufList = (0..300).map(take).collect();
    drop(rest);
    data.copy_in(0, &bytes);
    world.write(0, data).expect("a write");
    assert_eq!(world.stored()[..bytes.len()], bytes);
    assert_eq!((world.sim.controller().log().len(), world.pair.counters().copied), (2, 0));
    world.end();
}

#[test]
fn more_requests_than_slots_wait_their_turn() {
    let small = Options { queue_entries: 4, ..options() };
    let mut world = World::with(config(512), small);
    for block in 0..200u64 {
        world.submit(
            block,
            Operation::Write { fua: false },
            block * 512,
            512,
            Buf::from(vec![block as u8; 512]),
        );
    }
    let mut tags: Vec<_> = world.settle().iter().map(|answer| (answer.tag, answer.result)).collect();
    tags.sort_by_key(|(tag, _)| *tag);
    assert_eq!(tags, (0..200).map(|tag| (tag, Ok(()))).collect::<Vec<_>>());
    let stored = world.stored();
    assert!((0..200).all(|block| stored[block * 512..][..512] == [block as u8; 512]));
    world.end();
}

#[test]
fn queue_pairs_are_bounded_and_come_back() {
    let sim = Sim::stepwise(SimConfig { queue_pairs: 2, ..config(512) });
    let device = Device::open(sim.transport(), options()).expect("a controller");
    let first = QueuePair::new(&device).expect("one");
    let _second = QueuePair::new(&device).expect("two");
    let error = QueuePair::new(&device).err().expect("there is no third");
    assert_eq!(
        error.to_string(),
        "all 2 queue pairs of the controller are in use: close an image or use fewer threads"
    );
    assert_eq!(error.errno(), Errno::EBUSY);
    drop(first);
    QueuePair::new(&device).expect("the first one came back");
}

#[test]
fn several_namespaces_share_a_queue_pair() {
    let mut world = World::new(SimConfig {
        namespaces: vec![SimNamespace::new(512, 1 << 20), SimNamespace::new(4096, 1 << 20)],
        ..SimConfig::default()
    });
    let second = world.device.namespace(2).expect("active");
    world.submit(1, Operation::Write { fua: false }, 4096, 512, Buf::from(vec![1; 512]));
    let request = Request {
        tag: 2,
        op: Operation::Write { fua: false },
        offset: 4096,
        len: 4096,
        data: Buf::from(vec![2; 4096]).into(),
    };
    world.pair.submit(&second, request);
    assert!(world.settle().iter().all(|answer| answer.result.is_ok()));
    {
        let mut controller = world.sim.controller();
        let namespaces = &controller.config().namespaces;
        assert_eq!(namespaces[0].bytes()[4096..4608], [1; 512]);
        assert_eq!(namespaces[1].bytes()[4096..8192], [2; 4096]);
    }
    world.end();
}

#[test]
fn shadow_doorbells_spare_registers() {
    let mut world = World::new(SimConfig { shadow_doorbells: true, ..config(512) });
    for round in 0..50u64 {
        for block in 0..20 {
            world.submit(
                block,
                Operation::Write { fua: false },
                block * 512,
                512,
                Buf::from(vec![round as u8; 512]),
            );
        }
        assert!(world.settle().iter().all(|answer| answer.result.is_ok()));
    }
    assert_eq!(world.stored()[..512 * 20], [49; 512 * 20]);
    world.end();
}

/// Has the controller tell of something, and waits until the driver has followed that up.
fn tell(world: &World, (kind, info, log_page): (u8, u8, u8)) -> About {
    // The request to be told is there as soon as the device is looked after.
    while !world.sim.controller().tell(kind, info, log_page) {
        assert_eq!(world.device.next_event(), None);
        world.sim.step();
    }
    let event = loop {
        if let Some(event) = world.device.next_event() {
            break event;
        }
        world.sim.step();
    };
    assert_eq!((event.told.kind, event.told.info, event.told.log_page), (kind, info, log_page));
    assert_eq!(world.device.next_event(), None, "told once");
    event.about
}

#[test]
fn asynchronous_events_are_told_with_their_log_pages() {
    let mut world = World::new(config(512));
    let mut health = [0; 512];
    health[..6].copy_from_slice(&[1 << 3, 0x2c, 0x01, 5, 10, 99]);
    let mut errors = [0; 128];
    errors[..16].copy_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 9, 0, 0x02, 0x05, 0, 0]);
    errors[24] = 1;
    world.sim.controller().set_log(1, &errors);
    world.sim.controller().set_log(2, &health);
    for _ in 0..2 {
        world.read(0, Buf::zeroed(512)).1.expect("a read");
        let About::Health(health) = tell(&world, (1, 2, 2)) else { panic!("a health log") };
        assert_eq!((health.is_read_only(), health.temperature, health.spare), (true, 300, 5));
        let About::Errors(errors) = tell(&world, (0, 5, 1)) else { panic!("an error log") };
        let [error] = errors[..] else { panic!("one error: {errors:?}") };
        assert_eq!((error.count, error.queue, error.cid), (2, 1, 9));
        assert_eq!((error.status, error.namespace), (Status::UNRECOVERED_READ, 1));
        assert_eq!(tell(&world, (7, 1, 0xc0)), About::Unknown);
    }
    // A log page that cannot be read is an event all the same, and the next one comes.
    world.sim.controller().inject(|_, command| match command.opcode() {
        opcode::GET_LOG_PAGE => Fault::Status(Status::INTERNAL),
        _ => Fault::None,
    });
    assert_eq!(tell(&world, (1, 2, 2)), About::Unknown);
    world.sim.controller().relent();
    assert!(matches!(tell(&world, (1, 2, 2)), About::Health(_)));
    world.end();
}

#[test]
fn namespaces_that_change_are_identified_anew() {
    let world = World::new(config(512));
    let version = world.device.namespaces_version();
    // One grows, and another one comes.
    world.sim.controller().config().namespaces =
        vec![SimNamespace::new(512, 2 << 20), SimNamespace::new(4096, 1 << 20)];
    assert_eq!(world.device.namespace(1).expect("as it was").len_bytes(), 1 << 20);
    world.sim.controller().set_log(4, &[1, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(tell(&world, (2, 0, 4)), About::Namespaces(vec![1, 2]));
    assert_ne!(world.device.namespaces_version(), version);
    assert_eq!(world.device.namespace(1).expect("active").len_bytes(), 2 << 20);
    assert_eq!(world.device.namespace(2).expect("active").block(), 4096);
    // More changed than can be listed, of which one went.
    world.sim.controller().config().namespaces.pop();
    world.sim.controller().set_log(4, &[0xff; 4]);
    assert_eq!(tell(&world, (2, 0, 4)), About::Namespaces(vec![1, 2]));
    assert_eq!(world.device.namespace(2), Err(NvmeError::NoNamespace { id: 2 }));
    assert_eq!(world.device.namespaces(), [1]);
    world.end();
}

#[test]
fn a_write_cache_that_is_off_needs_no_flush() {
    let mut world = World::new(SimConfig { write_cache_on: false, log: true, ..config(512) });
    assert!(!world.device.identity().volatile_write_cache);
    assert_eq!(world.request(Operation::Flush, 0, 0, BufList::new()).1, Ok(()));
    assert!(world.sim.controller().log().is_empty());
    world.end();
}

#[test]
fn queue_pairs_take_turns_as_they_are_told_to() {
    let arbitration = Arbitration { burst_bits: 3, weights: [0, 9, 99] };
    for (weighted, arbitration, expected) in [
        // CC.AMS, dword 11 of Set Features, QPRIO of Create I/O Submission Queue.
        (true, Some(arbitration), (1, Some(0x6309_0003), 3)),
        (false, Some(arbitration), (0, Some(0x6309_0003), 0)),
        (true, None, (0, None, 0)),
    ] {
        let sim = Sim::stepwise(SimConfig { weighted_round_robin: weighted, log: true, ..config(512) });
        let device = Device::open(sim.transport(), Options { arbitration, ..options() }).expect("opens");
        let mut pair = QueuePair::with_priority(&device, Priority::Low).expect("the first queue pair");
        while !pair.is_running() {
            pair.tick(|_| unreachable!("nothing was asked for"));
            sim.step();
        }
        let configuration = sim.transport().registers().read32(offset::CC);
        let told = |code: u8, low: u32| {
            let controller = sim.controller();
            let mut commands = controller.admin_log().iter();
            let found = commands.find(|one| one.opcode() == code && one.dword(10) & 0xff == low);
            found.map(|command| command.dword(11))
        };
        let priority = told(opcode::CREATE_SQ, 1).expect("a queue") >> 1 & 3;
        let found = (configuration >> 11 & 7, told(opcode::SET_FEATURES, 1), priority);
        assert_eq!(found, expected, "{weighted} {arbitration:?}");
    }
}

#[test]
fn a_namespace_with_metadata_is_refused_and_the_others_work() {
    let mut namespaces = vec![SimNamespace::new(512, 1 << 20), SimNamespace::new(512, 1 << 20)];
    namespaces[1].metadata = 8;
    let world = World::new(SimConfig { namespaces, ..SimConfig::default() });
    let error = world.device.namespace(2).expect_err("metadata");
    let expected = "namespace 2, field LBAF.MS: found 8, expected 0: metadata beside blocks is not supported";
    assert_eq!(error.to_string(), expected);
    world.end();
}

#[test]
fn a_controller_that_never_becomes_ready_is_given_up() {
    let sim = Sim::stepwise(SimConfig { ready_after: u32::MAX, ..config(512) });
    let error = Device::open(sim.transport(), options()).err().expect("never ready");
    assert_eq!(error.to_string(), "the controller did not become ready (CSTS.RDY = 1) within 500ms");
    assert_eq!(sim.mapped(), 0);
}

#[test]
fn a_controller_that_refuses_to_be_identified_is_given_up() {
    let sim = Sim::stepwise(config(512));
    sim.controller().inject(|_, _| Fault::Status(Status::INTERNAL));
    let error = Device::open(sim.transport(), options()).err().expect("no identity");
    assert_eq!(error.to_string(), "Identify Controller: internal error (type 0h, code 06h)");
}
