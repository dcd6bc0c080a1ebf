//! The express lane from end to end: tpx-rootd, a user daemon without privilege, and applications, as real processes
//! under the real kernel. Everything happens in a network namespace and in child cgroups that the run makes.
//!
//! This program is also the user daemon and the applications: `express --role ...` in a new process.

mod cases;
mod faults;
mod lab;
mod roles;
mod trees;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--role", "inside", ..] => test(&words[2..], || lab::prepare().err()),
        ["--role", ..] => roles::play(&words[1..]),
        _ if words.iter().any(|w| w == "--list") => test(&words, || None),
        _ => test(&words, || Some(lab::move_away(&words))),
    }
}

/// `prepare` says what is missing; it runs when the words have been understood.
fn test(words: &[String], prepare: impl FnOnce() -> Option<anyhow::Error>) -> ExitCode {
    let mut arguments = Arguments::from_iter(["express"].into_iter().chain(words.iter().map(String::as_str)));
    arguments.test_threads = Some(1);
    let missing = prepare();
    let required = std::env::var("TPX_REQUIRE_TIER").is_ok_and(|tier| tier.parse::<u8>().is_ok_and(|t| t >= 2));
    if let Some(why) = missing.as_ref().filter(|_| required) {
        eprintln!("tier 2 is required, but {why:#}");
        return ExitCode::FAILURE;
    }
    if let Some(why) = &missing {
        eprintln!("ignored: {why:#}");
    }
    let trials = cases::ALL.iter().map(|(name, case)| {
        Trial::test(*name, move || lab::run(case).map_err(|e| format!("{e:#}").into()))
            .with_ignored_flag(missing.is_some())
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if missing.is_none() && !arguments.list {
        lab::tidy();
    }
    conclusion.exit_code()
}
