//! From one state to the next, as a list of steps.

use std::{collections::BTreeSet, fmt, fmt::Write as _};

use ipnet::IpNet;
use tpx_ebpf_abi::slot::Slot;

use crate::routed::{Names, Routed};

/// Where macOS looks for resolvers of single domains (resolver(5)).
pub const RESOLVER_DIRECTORY: &str = "/etc/resolver";
/// How the first line of each of our files begins; the device's name follows. What has it was written by tpx and may be
/// removed.
pub const MARK: &str = "# Written by tpx, removed when it disconnects: ";
/// What makes programs forget the answers they had before, as absolute paths and arguments.
pub const FLUSH: [Effect; 2] = [
    Effect { program: "/usr/bin/dscacheutil", arguments: &["-flushcache"] },
    Effect { program: "/usr/bin/killall", arguments: &["-HUP", "mDNSResponder"] },
];

/// A program that is run for what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effect {
    /// Its absolute path.
    pub program: &'static str,
    /// What it is told.
    pub arguments: &'static [&'static str],
}

/// One change of the host. Each can be done twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Routes a prefix to the device, for all.
    AddRoute(IpNet),
    /// Undoes it.
    RemoveRoute(IpNet),
    /// Routes a prefix to the device, for sockets that have its address (RTF_IFSCOPE): the kernel picks the interface by
    /// the source address, and then a route of that interface.
    AddScopedRoute(IpNet),
    /// Undoes it.
    RemoveScopedRoute(IpNet),
    /// Puts a file of this name and content into [`RESOLVER_DIRECTORY`].
    WriteResolver {
        /// Its name there.
        name: String,
        /// All of it.
        text: String,
    },
    /// Removes it.
    RemoveResolver {
        /// Its name there.
        name: String,
    },
    /// Runs [`FLUSH`].
    FlushCaches,
}

impl Step {
    fn undoes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::RemoveRoute(a), Self::AddRoute(b)) | (Self::AddRoute(a), Self::RemoveRoute(b)) => a == b,
            (Self::RemoveScopedRoute(a), Self::AddScopedRoute(b))
            | (Self::AddScopedRoute(a), Self::RemoveScopedRoute(b)) => a == b,
            (
                Self::RemoveResolver { name: a } | Self::WriteResolver { name: a, .. },
                Self::RemoveResolver { name: b } | Self::WriteResolver { name: b, .. },
            ) => a == b,
            (Self::FlushCaches, Self::WriteResolver { .. } | Self::RemoveResolver { .. }) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddRoute(net) | Self::AddScopedRoute(net) => write!(f, "add the route to {net}"),
            Self::RemoveRoute(net) | Self::RemoveScopedRoute(net) => write!(f, "remove the route to {net}"),
            Self::WriteResolver { name, .. } => write!(f, "write {RESOLVER_DIRECTORY}/{name}"),
            Self::RemoveResolver { name } => write!(f, "remove {RESOLVER_DIRECTORY}/{name}"),
            Self::FlushCaches => f.write_str("flush the caches of names"),
        }
    }
}

/// What leads from `before` to `want`; to undo everything, `want` is the default. Roads are there before names lead to
/// them, and go after.
///
/// `taken` are prefixes that other interfaces route. The kernel has one route for a prefix, so where the plan wants one
/// of those, its two halves are routed instead: they are more specific and win, and the other route stays untouched. It
/// has to be the same for both states, so the caller keeps what it was first given.
#[must_use]
pub fn steps(slot: Slot, before: &Routed, want: &Routed, taken: &BTreeSet<IpNet>) -> Vec<Step> {
    let mut steps = Vec::new();
    let (old, new) = (split(&before.routes, taken), split(&want.routes, taken));
    steps.extend(new.difference(&old).map(|net| Step::AddRoute(*net)));
    steps.extend(want.hidden.difference(&before.hidden).map(|net| Step::AddScopedRoute(*net)));
    let (old_files, new_files) = (files(slot, &before.names), files(slot, &want.names));
    let changed = new_files.iter().filter(|file| !old_files.contains(file)).cloned();
    let names: Vec<Step> = changed
        .map(|(name, text)| Step::WriteResolver { name, text })
        .chain(
            (old_files.iter().map(|(name, _)| name))
                .filter(|name| !new_files.iter().any(|(new, _)| new == *name))
                .map(|name| Step::RemoveResolver { name: name.clone() }),
        )
        .collect();
    if !names.is_empty() {
        steps.extend(names);
        steps.push(Step::FlushCaches);
    }
    steps.extend(before.hidden.difference(&want.hidden).map(|net| Step::RemoveScopedRoute(*net)));
    steps.extend(old.difference(&new).map(|net| Step::RemoveRoute(*net)));
    steps
}

/// What leads back to `before` after the first `done` of the [`steps`] to `want`. Nothing is taken back that was not done:
/// a route that was there already belongs to somebody else.
#[must_use]
pub fn back(slot: Slot, before: &Routed, want: &Routed, taken: &BTreeSet<IpNet>, done: usize) -> Vec<Step> {
    let mut forth = steps(slot, before, want, taken);
    forth.truncate(done);
    let mut back = steps(slot, want, before, taken);
    back.retain(|step| forth.iter().any(|other| step.undoes(other)));
    back
}

/// Removes what a crash left in [`RESOLVER_DIRECTORY`]: of the files there, with name and content, those that this slot
/// wrote. Routes went with the device.
#[must_use]
pub fn sweep<'a>(slot: Slot, files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<Step> {
    let mark = mark(slot);
    let mut steps: Vec<Step> = files
        .into_iter()
        .filter(|(_, text)| text.lines().next() == Some(&mark))
        .map(|(name, _)| Step::RemoveResolver { name: name.to_owned() })
        .collect();
    if !steps.is_empty() {
        steps.push(Step::FlushCaches);
    }
    steps
}

fn mark(slot: Slot) -> String {
    format!("{MARK}{}", slot.device())
}

/// `nets` with those that are taken cut in halves. A single address cannot be cut.
fn split(nets: &BTreeSet<IpNet>, taken: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
    let halves = |net: &IpNet| net.subnets(net.prefix_len() + 1).into_iter().flatten();
    let (cut, whole): (Vec<IpNet>, Vec<IpNet>) = nets.iter().partition(|net| taken.contains(net) && !is_address(net));
    whole.into_iter().chain(cut.iter().flat_map(halves)).collect()
}

fn is_address(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// One file a domain. The name is ours, so that a file that somebody else has for the domain stays: `domain` says what it
/// is for, `search_order` that ours is asked first.
fn files(slot: Slot, names: &Names) -> Vec<(String, String)> {
    let file = |domain: &String| {
        let mut text = format!("{}\ndomain {domain}\nsearch_order 1\n", mark(slot));
        for server in &names.servers {
            let _ = writeln!(text, "nameserver {server}");
        }
        // One file is enough: the search list is the host's, not the domain's.
        if names.search.first() == Some(domain) {
            let _ = writeln!(text, "search {}", names.search.join(" "));
        }
        (format!("{}.{domain}", slot.device()), text)
    };
    names.domains.iter().map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routed::tests::{nets, plan};

    fn wanted() -> Routed {
        Routed::of(&plan(), "macOS").unwrap()
    }

    fn none() -> BTreeSet<IpNet> {
        BTreeSet::new()
    }

    fn from_nothing() -> Vec<Step> {
        steps(Slot::FIRST, &Routed::default(), &wanted(), &none())
    }

    /// What a host looks like after steps.
    fn play(state: &mut (BTreeSet<IpNet>, BTreeSet<IpNet>, BTreeSet<(String, String)>), steps: &[Step]) {
        let (routes, scoped, files) = state;
        for step in steps {
            match step.clone() {
                Step::AddRoute(net) => assert!(routes.insert(net), "{net} is there"),
                Step::RemoveRoute(net) => assert!(routes.remove(&net), "{net} is not there"),
                Step::AddScopedRoute(net) => assert!(scoped.insert(net)),
                Step::RemoveScopedRoute(net) => assert!(scoped.remove(&net)),
                Step::WriteResolver { name, text } => {
                    files.retain(|(old, _)| *old != name);
                    files.insert((name, text));
                }
                Step::RemoveResolver { name } => {
                    assert!(files.iter().any(|(old, _)| *old == name), "{name} is not there");
                    files.retain(|(old, _)| *old != name);
                }
                Step::FlushCaches => {}
            }
        }
    }

    #[test]
    fn the_files_are_what_resolver_5_reads() {
        let text = from_nothing()
            .into_iter()
            .find_map(|step| match step {
                Step::WriteResolver { name, text } if name == "tpx0.emojivoto.svc.cluster.local" => Some(text),
                _ => None,
            })
            .unwrap();
        assert_eq!(
            text,
            "# Written by tpx, removed when it disconnects: tpx0\n\
             domain emojivoto.svc.cluster.local\n\
             search_order 1\n\
             nameserver 246.246.255.200\n\
             search emojivoto.svc.cluster.local svc.cluster.local\n"
        );
    }

    #[test]
    fn one_file_a_domain_and_one_search_list() {
        let files = files(Slot::FIRST, &wanted().names);
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["tpx0.cluster.local", "tpx0.emojivoto", "tpx0.emojivoto.svc.cluster.local", "tpx0.svc.cluster.local"]
        );
        assert_eq!(files.iter().filter(|(_, text)| text.contains("\nsearch ")).count(), 1);
    }

    #[test]
    fn roads_come_before_names_and_names_go_before_roads() {
        let up = from_nothing();
        let last_route = up.iter().rposition(|s| matches!(s, Step::AddRoute(_) | Step::AddScopedRoute(_))).unwrap();
        let first_file = up.iter().position(|s| matches!(s, Step::WriteResolver { .. })).unwrap();
        assert!(last_route < first_file);
        assert_eq!(up.last(), Some(&Step::FlushCaches));
        let down = steps(Slot::FIRST, &wanted(), &Routed::default(), &none());
        let flush = down.iter().position(|s| *s == Step::FlushCaches).unwrap();
        let first_route = down.iter().position(|s| matches!(s, Step::RemoveRoute(_))).unwrap();
        assert!(down.iter().rposition(|s| matches!(s, Step::RemoveResolver { .. })).unwrap() < flush);
        assert!(flush < first_route);
    }

    #[test]
    fn undoing_leaves_what_was_there() {
        let mut host = Default::default();
        play(&mut host, &from_nothing());
        assert!(!host.0.is_empty() && !host.1.is_empty() && !host.2.is_empty());
        play(&mut host, &steps(Slot::FIRST, &wanted(), &Routed::default(), &none()));
        assert_eq!(host, Default::default());
    }

    #[test]
    fn the_same_plan_again_changes_nothing() {
        assert_eq!(steps(Slot::FIRST, &wanted(), &wanted(), &none()), []);
    }

    #[test]
    fn a_changed_plan_changes_what_differs_and_nothing_else() {
        let mut plan = plan();
        plan.steer.push("10.50.0.0/16".parse().unwrap());
        plan.hidden.clear();
        let resolver = plan.resolver.as_mut().unwrap();
        resolver.routing_domains.retain(|domain| domain != "emojivoto.");
        let after = Routed::of(&plan, "macOS").unwrap();
        assert_eq!(
            steps(Slot::FIRST, &wanted(), &after, &none()),
            [
                Step::AddRoute("10.50.0.0/16".parse().unwrap()),
                Step::RemoveResolver { name: "tpx0.emojivoto".into() },
                Step::FlushCaches,
                Step::RemoveScopedRoute("10.244.0.0/16".parse().unwrap()),
            ]
        );
    }

    #[test]
    fn a_failure_at_any_step_leads_back_to_what_was_there() {
        let mut plan = plan();
        plan.steer = nets(&["10.96.0.0/16", "10.50.0.0/16"]);
        plan.hidden = nets(&["10.42.0.0/16"]);
        plan.resolver.as_mut().unwrap().routing_domains = vec!["cluster.local".into(), "books".into()];
        plan.resolver.as_mut().unwrap().search_domains = vec!["books.svc.cluster.local".into()];
        let after = Routed::of(&plan, "macOS").unwrap();
        let forth = steps(Slot::FIRST, &wanted(), &after, &none());
        assert!(forth.len() > 8, "{forth:?}");
        for done in 0..=forth.len() {
            let mut host = Default::default();
            play(&mut host, &from_nothing());
            let before = host.clone();
            play(&mut host, &forth[..done]);
            play(&mut host, &back(Slot::FIRST, &wanted(), &after, &none(), done));
            assert_eq!(host, before, "after {done} steps");
        }
    }

    #[test]
    fn a_vpn_that_routes_the_very_prefix_keeps_its_route() {
        let taken: BTreeSet<IpNet> = nets(&["211.55.48.0/24", "246.246.255.200/32"]).into_iter().collect();
        let mut host = Default::default();
        play(&mut host, &steps(Slot::FIRST, &Routed::default(), &wanted(), &taken));
        let has = |net: &str| host.0.contains(&net.parse().unwrap());
        assert!(!has("211.55.48.0/24") && has("211.55.48.0/25") && has("211.55.48.128/25"));
        assert!(has("246.246.255.200/32"), "a single address has no halves");
        play(&mut host, &steps(Slot::FIRST, &wanted(), &Routed::default(), &taken));
        assert_eq!(host, Default::default());
    }

    #[test]
    fn only_files_with_the_mark_of_this_slot_are_swept() {
        let ours = files(Slot::FIRST, &wanted().names);
        let second = files(Slot::new(1).unwrap(), &wanted().names);
        let foreign = [
            ("cluster.local", "nameserver 192.0.2.53\n"),
            ("tpx0.notes", "mine\n# Written by tpx, removed when it disconnects: tpx0\n"),
            ("tpx0.empty", ""),
        ];
        let all = ours.iter().chain(&second).map(|(name, text)| (name.as_str(), text.as_str())).chain(foreign);
        let swept = sweep(Slot::FIRST, all);
        let expected: Vec<Step> = ours
            .iter()
            .map(|(name, _)| Step::RemoveResolver { name: name.clone() })
            .chain([Step::FlushCaches])
            .collect();
        assert_eq!(swept, expected);
        assert_eq!(sweep(Slot::FIRST, foreign), []);
    }

    #[test]
    fn programs_are_named_by_absolute_paths() {
        assert!(FLUSH.iter().all(|effect| effect.program.starts_with('/')));
    }

    #[test]
    fn steps_say_what_they_do() {
        let text: Vec<String> = from_nothing().iter().map(Step::to_string).collect();
        assert!(text.contains(&"add the route to fd10:96::/112".to_owned()));
        assert!(text.contains(&"write /etc/resolver/tpx0.emojivoto".to_owned()));
    }
}
