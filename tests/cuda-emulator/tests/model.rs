//! The execution model: numbers of threads, warps, barriers, and that what is wrong in a kernel is found.

use tec_cuda_emulator::{Argument, Buffer, launch, run_backwards};

const ONE: [u32; 3] = [1, 1, 1];

fn pointer<T: bytemuck::Pod>(buffer: &Buffer<T>) -> Argument {
    Argument::Pointer(buffer.address(0))
}

/// What is wrong with a launch of one block.
fn error(kernel: &str, threads: u32, args: &[Argument]) -> String {
    launch(kernel, ONE, [threads, 1, 1], 64, args).unwrap_err()
}

#[test]
fn threads_and_blocks_know_their_numbers() {
    let (grid, block) = ([2, 3, 2], [4, 3, 5]);
    let (blocks, threads) = (12, 60);
    let out = Buffer::<u32>::poisoned(blocks * threads);
    launch("check_numbers", grid, block, 0, &[pointer(&out), Argument::U32(60)]).unwrap();
    let mut expected = Vec::new();
    for (bz, by, bx) in (0..2).flat_map(|z| (0..3).flat_map(move |y| (0..2).map(move |x| (z, y, x)))) {
        for (z, y, x) in (0..5).flat_map(|z| (0..3).flat_map(move |y| (0..4).map(move |x| (z, y, x)))) {
            expected.push(bz * 100_000 + by * 10_000 + bx * 1000 + z * 100 + y * 10 + x);
        }
    }
    assert_eq!(out.values(), expected);
}

#[test]
fn lanes_see_each_others_values() {
    let out = Buffer::<u32>::poisoned(3 * 96);
    launch("check_shuffles", ONE, [96, 1, 1], 0, &[pointer(&out)]).unwrap();
    let square = |warp: u32, lane: u32| (32 * warp + lane) * (32 * warp + lane);
    for (thread, values) in (0..).zip(out.values().chunks(3)) {
        let (warp, lane) = (thread / 32, thread % 32);
        let down = if lane + 3 < 32 { lane + 3 } else { lane };
        let expected = [lane ^ 5, 7, down].map(|source| square(warp, source));
        assert_eq!(values, expected, "thread {thread}");
    }
}

#[test]
fn barriers_order_what_threads_write() {
    let out = Buffer::<u32>::poisoned(1024);
    launch("check_barriers", ONE, [1024, 1, 1], 4096, &[pointer(&out)]).unwrap();
    assert_eq!(out.values(), [1024 * 1023 / 2; 1024]);
}

#[test]
fn shared_memory_begins_as_nan_in_each_block() {
    let out = Buffer::<f32>::new(&[0.0; 3]);
    launch("check_fresh_shared", [3, 1, 1], ONE, 4, &[pointer(&out)]).unwrap();
    assert!(out.values().iter().all(|v| v.is_nan()));
}

#[test]
fn threads_that_wait_forever_are_reported() {
    let out = Buffer::<u32>::poisoned(256);
    let message = error("check_half_barrier", 256, &[pointer(&out)]);
    assert!(
        message.contains("check_half_barrier") && message.contains("128 have ended"),
        "{message}"
    );
    assert!(message.contains("128 wait at __syncthreads"), "{message}");
    let message = error("check_barrier_and_shuffle", 64, &[pointer(&out)]);
    assert!(
        message.contains("32 wait at __syncthreads and 32 for their warp in __shfl_xor_sync"),
        "{message}"
    );
    let message = error("check_two_operations", 32, &[pointer(&out)]);
    assert!(
        message.contains("in __syncwarp") && message.contains("in __shfl_xor_sync"),
        "{message}"
    );
    let message = error("check_part_of_a_warp", 32, &[pointer(&out)]);
    assert!(message.contains("mask ffff"), "{message}");
    // After an error the next launch is a fresh one.
    launch("check_shuffles", ONE, [32, 1, 1], 0, &[pointer(&out)]).unwrap();
}

#[test]
fn a_missing_barrier_shows_in_the_order_of_threads() {
    let launch = |backwards| {
        run_backwards(backwards);
        let out = Buffer::<u32>::poisoned(64);
        launch("check_missing_barrier", ONE, [64, 1, 1], 256, &[pointer(&out)]).unwrap();
        out.values()
    };
    assert_ne!(launch(false), launch(true));
}

#[test]
fn shared_memory_has_an_end() {
    launch("check_shared_overflow", ONE, ONE, 64, &[Argument::U32(15)]).unwrap();
    let message = error("check_shared_overflow", 1, &[Argument::U32(16)]);
    assert!(message.contains("behind its 64 bytes"), "{message}");
}

#[test]
fn buffers_notice_what_is_written_outside() {
    for (at, inside) in [(4, true), (5, false)] {
        let out = Buffer::<u32>::new(&[1; 5]);
        let args = [pointer(&out), Argument::U32(at)];
        launch("check_write", ONE, ONE, 0, &args).unwrap();
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| out.values()));
        assert_eq!(seen.is_ok(), inside, "{at}");
    }
}

#[test]
fn launches_that_do_not_fit_the_kernel_are_refused() {
    let out = Buffer::<u32>::poisoned(96);
    let stray = Argument::Pointer(out.address(97));
    for (kernel, grid, block, shared, args, reason) in [
        ("no_such_kernel", ONE, ONE, 0, vec![], "no kernel of this name"),
        ("check_shuffles", ONE, ONE, 0, vec![], "arguments of []"),
        (
            "check_shuffles",
            ONE,
            ONE,
            0,
            vec![Argument::U32(1)],
            "[4] bytes, its parameters have [8]",
        ),
        ("check_shuffles", ONE, ONE, 0, vec![stray], "no buffer"),
        ("check_shuffles", ONE, [257, 1, 1], 0, vec![pointer(&out)], "1 to 256"),
        ("check_shuffles", ONE, [0, 1, 1], 0, vec![pointer(&out)], "1 to 256"),
        (
            "check_shuffles",
            [1, 0, 1],
            ONE,
            0,
            vec![pointer(&out)],
            "CUDA's limits",
        ),
        (
            "check_shuffles",
            [1, 65_536, 1],
            ONE,
            0,
            vec![pointer(&out)],
            "CUDA's limits",
        ),
        (
            "check_shuffles",
            ONE,
            ONE,
            200_000,
            vec![pointer(&out)],
            "a block can have",
        ),
    ] {
        let message = launch(kernel, grid, block, shared, &args).unwrap_err();
        assert!(message.contains(reason), "{message}");
    }
}
