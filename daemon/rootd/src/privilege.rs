//! What this process keeps of root's power: BPF programs, network configuration, raw sockets, port 53 of foreign
//! addresses, and cgroups of users.

use anyhow::{Context as _, ensure};
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs,
    },
};
use tpx_datapath::linux::needs_perfmon;

const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);
/// Kept where they are there: the express lane needs the first, the floor alone the second, to stand in for name servers,
/// and process trees the third: the cgroups of a desktop's programs belong to its user (`user@UID.service` is delegated),
/// and without it even root makes none in there and moves nothing.
const USEFUL: CapabilitySet =
    CapabilitySet::BPF.union(CapabilitySet::NET_BIND_SERVICE).union(CapabilitySet::DAC_OVERRIDE);

/// Gives up every capability but five, on older kernels six (capabilities(7)), for this process and what it might start,
/// for good. The process must have one thread.
///
/// # Errors
/// When those for the network are not there to keep, or the kernel refuses.
pub(crate) fn drop_all_but_network() -> anyhow::Result<()> {
    let have = capabilities(None).context("cannot read the own capabilities")?;
    ensure!(
        have.permitted.contains(NEEDED),
        "CAP_NET_ADMIN and CAP_NET_RAW are needed: run it as root (`sudo tpx-rootd serve`) or as a service"
    );
    let tracing = if needs_perfmon() { CapabilitySet::PERFMON } else { CapabilitySet::empty() };
    let kept = NEEDED | have.permitted & (USEFUL | tracing);
    // Kernels before 5.11 count maps as locked memory. Where the limit cannot be raised, it is that of the service.
    let unlimited = Rlimit { current: None, maximum: None };
    if let Err(e) = setrlimit(Resource::Memlock, unlimited) {
        tracing::debug!("RLIMIT_MEMLOCK: {e}");
    }
    shrink_bounding_set(have.effective, kept)?;
    clear_ambient_capability_set().context("PR_CAP_AMBIENT_CLEAR_ALL")?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).context("capset")?;
    set_no_new_privs(true).context("PR_SET_NO_NEW_PRIVS")
}

fn shrink_bounding_set(effective: CapabilitySet, kept: CapabilitySet) -> anyhow::Result<()> {
    if !effective.contains(CapabilitySet::SETPCAP) {
        // Whoever took it away has bounded the set; no_new_privs makes the rest of it worthless.
        return Ok(());
    }
    for bit in (0..u64::BITS).map(|n| CapabilitySet::from_bits_retain(1 << n)) {
        if kept.contains(bit) {
            continue;
        }
        match remove_capability_from_bounding_set(bit) {
            Ok(()) => {}
            Err(Errno::INVAL) => break, // past the last one that this kernel knows
            Err(e) => return Err(e).context("PR_CAPBSET_DROP"),
        }
    }
    Ok(())
}
