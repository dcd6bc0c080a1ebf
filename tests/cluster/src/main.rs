//! Tests against a real cluster. They run as root inside the lab's laptop, one after the other, because they connect,
//! quit and kill what the whole laptop shares; `cargo xtask test --tier 3` starts them there.

mod cases;
mod cluster;
mod laptop;
mod process;
mod residue;
mod resolved;
mod vpn;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if let Err(why) = laptop::check() {
        eprintln!("{why}: run `cargo xtask test --tier 3`");
        return ExitCode::FAILURE;
    }
    let trials = cases::all().into_iter().map(|(name, case)| {
        Trial::test(name, move || {
            let result = case();
            residue::after_case(name, result).map_err(|e| format!("{e:#}").into())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    laptop::tidy();
    conclusion.exit_code()
}
