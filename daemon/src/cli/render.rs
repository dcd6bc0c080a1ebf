//! Results as text for people.

use std::fmt::Display;

use comfy_table::{Table, presets};

use crate::{
    ipc::NamespaceRow,
    userd::status::{Containers, Dns, Scope, State, Status, Subnet},
};

/// What `tpx connect` says in the end.
pub(crate) fn connected(status: &Status) -> String {
    let mut text = format!(
        "Connected to context {}, namespace {} ({})",
        status.kubernetes.context, status.namespace, status.kubernetes.server
    );
    if let Some(mapped) = &status.mapped_namespaces {
        text += &format!("\nNames are limited to the namespaces {}", mapped.join(", "));
    }
    if !status.dns.unanswered.is_empty() && !status.dns.systemd_resolved {
        text += &format!(
            "\nNames of the cluster do not resolve where {} is asked: on this datapath nothing can answer in its place",
            status.dns.unanswered.join(", ")
        );
    }
    for moved in status.datapath.subnets.iter().filter(|n| n.mode != "direct") {
        text += &format!("\n{}", subnet(moved));
    }
    text
}

/// What `tpx run` says where nobody watches: a line.
pub(crate) fn running(status: &Status) -> String {
    let Status { name, kubernetes, namespace, .. } = status;
    format!("Connected to context {}, namespace {namespace}, as {name}", kubernetes.context)
}

/// `tpx status` of several connections.
pub(crate) fn connections(statuses: &[Status]) -> String {
    table(
        &["NAME", "SCOPE", "CONTEXT", "NAMESPACE", "STATE", "OPEN"],
        statuses.iter().map(|s| {
            let state = match s.state {
                State::Connected => "connected",
                State::Reconnecting => "reconnecting",
            };
            vec![
                s.name.clone(),
                s.scope.to_string(),
                s.kubernetes.context.clone(),
                s.namespace.clone(),
                state.into(),
                s.flows.open.to_string(),
            ]
        }),
    )
}

/// Who answers the cluster's names on this laptop.
fn name_servers(dns: &Dns) -> String {
    let mut lines = Vec::new();
    if !dns.name_servers.is_empty() {
        lines.push(format!("{} (answered by tpx for the cluster)", dns.name_servers.join(", ")));
    }
    if dns.systemd_resolved {
        lines.push("systemd-resolved (asks tpx for the cluster)".into());
    }
    if !dns.unanswered.is_empty() {
        lines.push(format!("{} (on this machine: only eBPF could answer for it)", dns.unanswered.join(", ")));
    }
    lines.join("\n")
}

/// A subnet on one line: what it is, how it is reached, and why not directly.
fn subnet(n: &Subnet) -> String {
    let Subnet { cidr, role, mode, range, because } = n;
    let because = because.as_ref().map_or_else(String::new, |why| format!(", because {why}"));
    match range {
        Some(range) => format!("{cidr} ({role}) is {mode}: reached under addresses in {range}{because}"),
        None => format!("{cidr} ({role}) is {mode}{because}"),
    }
}

/// Which containers see the cluster.
fn containers(c: &Containers) -> String {
    if let Some(problem) = &c.problem {
        return format!("not served: {problem}");
    }
    let hook = c.hook.map_or_else(String::new, |hook| format!(" ({hook})"));
    let served = match &c.bridges[..] {
        [] if c.problems.is_empty() => return "no bridge on this machine".into(),
        [] => None,
        bridges => Some(format!("behind {}{hook}", bridges.join(", "))),
    };
    let not = c.problems.iter().map(|problem| format!("not behind {problem}"));
    served.into_iter().chain(not).collect::<Vec<_>>().join("\n")
}

/// `tpx status`.
pub(crate) fn status(s: &Status) -> String {
    let state = match (s.state, &s.manager.problem) {
        (State::Connected, _) => "connected".to_owned(),
        (State::Reconnecting, None) => {
            "reconnecting: the carrier was lost, new connections wait up to 15 s for the next one".to_owned()
        }
        (State::Reconnecting, Some(why)) => format!("reconnecting: {why}"),
    };
    let subnets: Vec<String> = s.datapath.subnets.iter().map(subnet).collect();
    let mapped = s.mapped_namespaces.as_ref().map_or_else(|| "all".into(), |names| names.join(", "));
    let mut rows = vec![
        ("Status", state),
        ("Connection", s.name.clone()),
        ("Scope", scope(&s.scope)),
        ("Kubernetes server", s.kubernetes.server.clone()),
        ("Kubernetes context", s.kubernetes.context.clone()),
        ("Namespace", s.namespace.clone()),
        ("Mapped namespaces", mapped),
        ("Traffic manager", format!("{}, version {}", s.manager.namespace, s.manager.version)),
        ("Carrier", s.manager.carrier.clone()),
        ("Datapath", format!("{} ({})", s.datapath.road, s.datapath.because)),
        ("Subnets", subnets.join("\n")),
    ];
    rows.push(("Containers", containers(&s.datapath.containers)));
    if !s.datapath.except.is_empty() {
        rows.push(("Never steered", join(&s.datapath.except)));
    }
    let policy = &s.datapath.policy;
    if !policy.deny.is_empty() {
        let subnets = format!("({} subnets, {})", policy.subnets, policy.deny_with);
        rows.push(("Denied", format!("{} {subnets}", join(&policy.deny))));
    }
    if !s.datapath.missing.is_empty() {
        let lines = s.datapath.missing.iter().map(|m| format!("{}: {}", m.about, m.fallback));
        rows.push(("Not in this kernel", lines.collect::<Vec<_>>().join("\n")));
    }
    if let Some(problem) = &s.datapath.problem {
        rows.push(("Routing problem", problem.clone()));
    }
    rows.extend([
        ("Name servers", name_servers(&s.dns)),
        ("Cluster domain", s.dns.cluster_domain.clone()),
        (
            "Names asked",
            format!(
                "{} ({} cluster, {} passed on, {} failed)",
                s.dns.queries, s.dns.cluster, s.dns.forwarded, s.dns.failed
            ),
        ),
        (
            "Connections",
            format!(
                "{} open, {} so far, {} refused by the cluster, {} failed in the tunnel",
                s.flows.open, s.flows.opened, s.flows.refused, s.flows.failed
            ),
        ),
        (
            "User daemon",
            format!("version {}, pid {}, log {}", s.user_daemon.version, s.user_daemon.pid, s.user_daemon.log),
        ),
        ("Root daemon", format!("version {}, socket {}", s.root_daemon.version, s.root_daemon.socket)),
    ]);
    pairs(&rows)
}

fn scope(scope: &Scope) -> String {
    match scope {
        Scope::Workstation => "workstation: every process of this machine".into(),
        Scope::Cgroup { cgroup } => format!("processes in {}", cgroup.display()),
        Scope::Container { name, addresses } if addresses.is_empty() => format!("container {name}, which does not run"),
        Scope::Container { name, addresses } => format!("container {name}, at {}", join(addresses)),
        Scope::Tree { cgroup } => format!("process tree of `tpx run`, in {}", cgroup.display()),
    }
}

/// `tpx manager uninstall`.
pub(crate) fn removed(removed: &tpx_install::Removed) -> String {
    let first = match &removed.objects[..] {
        [] if removed.kept.is_empty() => "Nothing was installed".into(),
        [] => "Nothing was removed".into(),
        objects => format!("Removed {}", objects.join(", ")),
    };
    let kept = removed.kept.iter().map(|kept| format!("Kept {}: {}", kept.object, kept.because));
    std::iter::once(first).chain(kept).collect::<Vec<_>>().join("\n")
}

/// `tpx list-namespaces`.
pub(crate) fn namespaces(rows: &[NamespaceRow]) -> String {
    table(
        &["NAMESPACE", "NAMES"],
        rows.iter().map(|row| {
            let names = match (row.connected, row.mapped) {
                (true, _) => "mapped, also by single label",
                (false, true) => "mapped",
                (false, false) => "not mapped",
            };
            vec![row.name.clone(), names.into()]
        }),
    )
}

/// Two aligned columns: what and how much. Further lines of a value go under its first.
pub(crate) fn pairs<T: Display>(rows: &[(&str, T)]) -> String {
    let mut table = plain();
    for (key, value) in rows {
        table.add_row([format!("{key}:"), value.to_string()]);
    }
    trimmed(&table)
}

/// Aligned columns under a header.
pub(crate) fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = plain();
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    trimmed(&table)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

/// The table without the padding at its sides.
fn trimmed(table: &Table) -> String {
    let lines = table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use tpx_datapath::linux::Hook;

    use super::*;

    #[test]
    fn containers_on_a_line_each() {
        let of = |served: &[&str], problems: &[&str], problem: Option<&str>| {
            containers(&Containers {
                bridges: served.iter().map(|s| (*s).to_owned()).collect(),
                hook: Some(Hook::Tcx),
                problems: problems.iter().map(|s| (*s).to_owned()).collect(),
                problem: problem.map(str::to_owned),
            })
        };
        assert_eq!(of(&[], &[], None), "no bridge on this machine");
        assert_eq!(of(&["cni0", "docker0"], &[], None), "behind cni0, docker0 (tcx)");
        assert_eq!(of(&["cni0"], &["docker0: no"], None), "behind cni0 (tcx)\nnot behind docker0: no");
        assert_eq!(of(&[], &["docker0: no"], None), "not behind docker0: no");
        assert_eq!(of(&[], &[], Some("no eBPF")), "not served: no eBPF");
    }

    #[test]
    fn what_was_kept_is_said() {
        let of = |objects: &[&str], kept: &[&str]| {
            let kept = kept.iter().map(|object| tpx_install::Kept {
                object: (*object).to_owned(),
                because: "tpx did not make it".into(),
            });
            removed(&tpx_install::Removed {
                objects: objects.iter().map(|object| (*object).to_owned()).collect(),
                kept: kept.collect(),
            })
        };
        assert_eq!(of(&[], &[]), "Nothing was installed");
        assert_eq!(of(&["A a", "B b"], &[]), "Removed A a, B b");
        assert_eq!(of(&["A a"], &["N n"]), "Removed A a\nKept N n: tpx did not make it");
        assert_eq!(of(&[], &["N n"]), "Nothing was removed\nKept N n: tpx did not make it");
    }

    #[test]
    fn pairs_are_aligned_and_keep_lines() {
        assert_eq!(pairs(&[("A", "1\n2"), ("Long", "3")]), "A:     1\n       2\nLong:  3");
    }
}
