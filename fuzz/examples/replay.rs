//! Runs inputs without a fuzzer, on any machine that has a standard library: each target's seeds, random bytes, and the files
//! under `DIRECTORY/TARGET` if a directory is given.

use std::path::Path;

use tec_fuzz::input::Random;
use tec_fuzz::targets;

/// Random inputs of each target.
const RANDOM: u32 = 20_000;

fn main() {
    let directory = std::env::args_os().nth(1);
    let mut random = Random(4);
    let mut count = 0u32;
    for target in targets::ALL {
        let mut run = |input: &[u8]| {
            (target.run)(input);
            count += 1;
        };
        (target.seeds)().iter().for_each(|seed| run(seed));
        for _ in 0..RANDOM {
            let len = random.next_u64() % 300;
            let input: Vec<u8> = (0..len).map(|_| random.next_u64() as u8).collect();
            run(&input);
        }
        let corpus = directory
            .as_ref()
            .map(|directory| Path::new(directory).join(target.name));
        if let Some(files) = corpus.and_then(|corpus| std::fs::read_dir(corpus).ok()) {
            for file in files.flatten() {
                match std::fs::read(file.path()) {
                    Ok(input) => run(&input),
                    Err(error) => eprintln!("{}: {error}", file.path().display()),
                }
            }
        }
    }
    println!("{count} inputs on {} bits", usize::BITS);
}
