//! The floor over real TUN devices: the kernel's own sockets connect through it.
//!
//! Everything happens in a network namespace of the test's own, whose packets cannot leave it.

mod cluster;
mod connections;
mod datagrams;
mod sum;
#[expect(unsafe_code, reason = "making a TUN device")]
mod sys;
mod world;

use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};

use crate::world::World;

/// Which tier this is: namespaces of an ordinary user.
const TIER: u8 = 1;

type Case = (&'static str, fn(&World) -> Result<()>);

const CASES: &[Case] = &[
    ("connect_tells_the_truth", connections::truth),
    ("a_held_syn_is_released", connections::held),
    ("much_arrives_whole", connections::volume),
    ("halves_end_on_their_own", connections::halves),
    ("resets_are_resets", connections::resets),
    ("five_hundred_at_once", connections::many),
    ("datagrams_of_every_size", datagrams::sizes),
    ("datagrams_that_do_not_arrive", datagrams::errors),
    ("nobody_gets_anothers_answer", datagrams::many),
    ("pings_are_answered", datagrams::pings),
    ("unknown_protocols_are_refused", datagrams::strangers),
];

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // One after the other: some measure time.
    args.test_threads = Some(1);
    let required = std::env::var("TPX_REQUIRE_TIER").ok().and_then(|t| t.parse().ok()).unwrap_or(0) >= TIER;
    let world =
        if args.list { Err(anyhow::anyhow!("only listed")) } else { world::leave().and_then(|()| World::new()) };
    let world: &'static Result<World> = Box::leak(Box::new(world));
    if let Err(e) = world
        && !args.list
    {
        eprintln!("no namespace to test in: {e:#}");
    }
    let trial = |(name, case): &'static Case| {
        let run = move || match world {
            Ok(world) => case(world).map_err(|e| format!("{e:#}").into()),
            Err(e) => Err(format!("{e:#}").into()),
        };
        Trial::test(*name, run).with_ignored_flag(world.is_err() && !required)
    };
    libtest_mimic::run(&args, CASES.iter().map(trial).collect()).exit_code()
}
