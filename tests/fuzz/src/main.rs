//! Throws damaged messages at every parser of foreign bytes that is a pure function. Each run of a seed is the same, so a
//! crash is repeated by its number; it needs nothing but a stable compiler.

mod mutate;
mod random;
mod targets;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::{random::Random, targets::Target};

/// Fuzzes the parsers of foreign bytes.
#[derive(Parser)]
struct Arguments {
    /// When to stop, whatever is done by then.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many inputs in all.
    #[arg(long, default_value_t = 1_000_000)]
    executions: u64,
    /// Only this parser.
    #[arg(long)]
    target: Option<String>,
    /// Which sequence of inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this input, as a crash printed it. Needs --target.
    #[arg(long, requires = "target", value_name = "HEX")]
    input: Option<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("tpx-fuzz: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let targets: Vec<&Target> =
        targets::ALL.iter().filter(|t| arguments.target.as_deref().is_none_or(|name| name == t.name)).collect();
    ensure!(!targets.is_empty(), "no such target; there are: {}", targets::ALL.map(|t| t.name).join(", "));
    if let Some(hex) = &arguments.input {
        let input = from_hex(hex).context("--input takes hexadecimal digits")?;
        return Ok(targets.iter().all(|target| crash(target, &input).is_none()));
    }
    let start = Instant::now();
    let done = fuzz(&targets, arguments.seed, arguments.executions, || {
        start.elapsed() >= Duration::from_secs(arguments.seconds)
    });
    for (target, count) in targets.iter().zip(&done.counts) {
        println!("{:10} {:8} executions, {:8} understood", target.name, count.executions, count.understood);
    }
    println!("{} executions in {:.1} s", done.executions(), start.elapsed().as_secs_f32());
    if let Some(Crash { target, input, why }) = &done.crash {
        let hex = to_hex(input);
        eprintln!(
            "{target} crashed: {why}\ninput: {hex}\nrepeat: cargo run -p tpx-fuzz -- --target {target} --input {hex}"
        );
    }
    Ok(done.crash.is_none())
}

#[derive(Default, Clone)]
struct Count {
    executions: u64,
    /// Inputs that the parser took: a fuzzer whose inputs are all refused at the first byte looks at nothing.
    understood: u64,
}

#[derive(Default)]
struct Done {
    counts: Vec<Count>,
    crash: Option<Crash>,
}

struct Crash {
    target: &'static str,
    input: Vec<u8>,
    why: String,
}

impl Done {
    fn executions(&self) -> u64 {
        self.counts.iter().map(|c| c.executions).sum()
    }
}

/// Runs the targets in turn until there were `executions`, `enough` says so, or one crashes.
fn fuzz(targets: &[&Target], seed: u64, executions: u64, enough: impl Fn() -> bool) -> Done {
    let seeds: Vec<Vec<Vec<u8>>> = targets.iter().map(|t| (t.seeds)()).collect();
    let mut random = Random::new(seed);
    let mut done = Done { counts: vec![Count::default(); targets.len()], crash: None };
    for n in 0..executions {
        if n % 256 == 0 && enough() {
            break;
        }
        let at = random.below(targets.len());
        let (target, seeds) = (targets[at], &seeds[at]);
        let input = mutate::mutated(seeds, target.framed, &mut random);
        done.counts[at].executions += 1;
        match catch_unwind(AssertUnwindSafe(|| (target.run)(&input))) {
            Ok(understood) => done.counts[at].understood += u64::from(understood),
            Err(panic) => {
                done.crash = Some(Crash { target: target.name, input, why: words(&*panic) });
                break;
            }
        }
    }
    done
}

fn crash(target: &Target, input: &[u8]) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).err().map(|panic| words(&*panic))
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").to_owned()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = hex.chars().map(|c| u8::try_from(c.to_digit(16)?).ok()).collect();
    let digits = digits.filter(|d| d.len().is_multiple_of(2))?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_thousand_inputs() {
        let all: Vec<&Target> = targets::ALL.iter().collect();
        let done = fuzz(&all, 7, 20_000, || false);
        if let Some(Crash { target, input, why }) = done.crash {
            panic!("{target}: {why}: {}", to_hex(&input));
        }
        assert_eq!(done.counts.iter().map(|c| c.executions).sum::<u64>(), 20_000);
        for (target, count) in targets::ALL.iter().zip(done.counts) {
            // Both ways: some are taken, and most are not what they were.
            let refused = count.executions - count.understood;
            assert!(count.understood > 100 && refused > 100, "{}: {} understood", target.name, count.understood);
        }
    }

    #[test]
    fn seeds_are_understood() {
        for target in &targets::ALL {
            for seed in (target.seeds)() {
                assert!((target.run)(&seed), "{}: {}", target.name, to_hex(&seed));
            }
        }
    }

    #[test]
    fn a_crash_is_found_and_can_be_repeated() {
        // Fails for what no seed holds.
        let fragile = Target {
            name: "fragile",
            seeds: || vec![vec![0; 8]],
            framed: false,
            run: |bytes| {
                assert!(!bytes.contains(&0xff), "a byte of ones");
                true
            },
        };
        let first = fuzz(&[&fragile], 3, 100_000, || false).crash.expect("no crash was found");
        assert_eq!(first.why, "a byte of ones");
        let again = fuzz(&[&fragile], 3, 100_000, || false).crash.unwrap();
        assert_eq!(first.input, again.input);
        let input = from_hex(&to_hex(&first.input)).unwrap();
        assert!(crash(&fragile, &input).is_some());
    }

    #[test]
    fn hexadecimal() {
        assert_eq!(from_hex("00ff7A"), Some(vec![0, 255, 0x7a]));
        assert_eq!((from_hex("0"), from_hex("0g"), from_hex("")), (None, None, Some(vec![])));
    }
}
