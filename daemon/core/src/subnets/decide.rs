//! The decision itself.
//!
//! Every prefix that any rule names divides the addresses. They are visited from wide to narrow, each with those around
//! it; what holds for a prefix follows from these alone, and so does what holds for every address.

use std::{collections::BTreeMap, net::IpAddr, ops::Bound};

use ipnet::IpNet;

use super::{
    Because, Exception, Exempt, HostRoute, Mode, Role, RoutingPolicy, Subnet, SubnetError, Subnets, VnatSelector,
    ranges,
};
use crate::{
    cidr,
    plan::{PlanError, may_be_steered},
};

/// What the decision depends on. Order and repetition in the lists make no difference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs {
    /// The cluster's service subnets.
    pub service_subnets: Vec<IpNet>,
    /// The cluster's pod subnets.
    pub pod_subnets: Vec<IpNet>,
    /// The host's unicast routes without those of tpx's own device, of all tables that are in use.
    pub host_routes: Vec<HostRoute>,
    /// Whether only the processes of a scope are steered. Then the host's routes conflict with nothing: everybody else
    /// follows them as before, and the scope asked for the cluster.
    pub scoped: bool,
    /// Where the API server (or the proxy in front of it) is; the tunnel itself runs over it. Never captured.
    pub api_server: Vec<IpAddr>,
    /// The host's name servers. Never captured.
    pub name_servers: Vec<IpAddr>,
    /// The host's routers. Never captured.
    pub gateways: Vec<IpAddr>,
    /// The user's rules.
    pub policy: RoutingPolicy,
}

/// Decides what becomes of every subnet, before anything is connected.
///
/// # Errors
/// A rule that cannot be followed, ranges of virtual addresses that are not free, or a conflict that is not to be
/// resolved. It is the same error whatever the order of the inputs.
pub fn decide(inputs: &Inputs) -> Result<Subnets, SubnetError> {
    let subnets = decide_again(inputs)?;
    let refused = subnets.subnets.iter().find_map(|subnet| match &subnet.mode {
        Mode::Refused { because: Because::Conflict(route) } => {
            Some(SubnetError::Conflict { subnet: subnet.cidr, role: subnet.role, route: route.clone() })
        }
        _ => None,
    });
    refused.map_or(Ok(subnets), Err)
}

/// Decides anew while connected: as [`decide`], but a conflict that is not to be resolved only takes the subnet away
/// ([`Mode::Refused`]), because ending the connection for a VPN that comes up would be worse.
///
/// # Errors
/// As [`decide`], without conflicts.
pub fn decide_again(inputs: &Inputs) -> Result<Subnets, SubnetError> {
    check_rules(&inputs.policy)?;
    let (virtual4, virtual6) = (inputs.policy.virtual4, inputs.policy.virtual6);
    ranges::check(virtual4.into(), inputs)?;
    ranges::check(virtual6.into(), inputs)?;
    let mut subnets = Subnets { subnets: Vec::new(), exceptions: Vec::new(), virtual4, virtual6 };
    let marks = marks(inputs);
    let mut around: Vec<Frame<'_>> = Vec::new();
    for (cidr, mark) in &marks {
        while around.last().is_some_and(|frame| !frame.cidr.contains(cidr)) {
            around.pop();
        }
        let (role, verdict) = judge(*cidr, mark, &around, &marks, inputs);
        let outer = around.last().map_or(&Verdict::Outside, |frame| &frame.verdict);
        if mark.role.is_some() || verdict != *outer {
            match (&verdict, mark.role.and(role)) {
                (Verdict::Outside, _) => {}
                (Verdict::Exempt(why), Some(role)) => {
                    let mode = Mode::Refused { because: Because::Exempt(*why) };
                    subnets.subnets.push(Subnet { cidr: *cidr, role, mode });
                }
                (Verdict::Exempt(why), None) => {
                    if matches!(outer, Verdict::In(Mode::Direct | Mode::Virtual { .. })) {
                        subnets.exceptions.push(Exception { cidr: *cidr, why: *why });
                    }
                }
                (Verdict::In(mode), _) => {
                    let role = role.unwrap_or(Role::Vnat);
                    subnets.subnets.push(Subnet { cidr: *cidr, role, mode: mode.clone() });
                }
            }
        }
        around.push(Frame { cidr: *cidr, mark, role, verdict });
    }
    Ok(subnets)
}

/// The subnets among the selectors.
pub(super) fn vnat_cidrs(policy: &RoutingPolicy) -> impl Iterator<Item = IpNet> {
    policy.vnat.iter().filter_map(|selector| match selector {
        VnatSelector::Cidr(net) => Some(*net),
        _ => None,
    })
}

/// What the rules say about one prefix.
#[derive(Debug, Default)]
struct Mark {
    role: Option<Role>,
    asked: Option<VnatSelector>,
    allowed: bool,
    never: bool,
    host: Option<Exempt>,
}

/// A prefix around the one that is judged.
struct Frame<'a> {
    cidr: IpNet,
    mark: &'a Mark,
    role: Option<Role>,
    verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// Nothing to do with the cluster.
    Outside,
    /// The cluster's or the user's, but not to be captured.
    Exempt(Exempt),
    In(Mode),
}

fn marks(inputs: &Inputs) -> BTreeMap<IpNet, Mark> {
    let policy = &inputs.policy;
    let mut marks: BTreeMap<IpNet, Mark> = BTreeMap::new();
    let mut at = |net: IpNet, change: &dyn Fn(&mut Mark)| change(marks.entry(net.trunc()).or_default());
    let roles = [
        (Role::Services, &inputs.service_subnets, VnatSelector::Service),
        (Role::Pods, &inputs.pod_subnets, VnatSelector::Pods),
        (Role::Also, &policy.also_proxy, VnatSelector::Also),
    ];
    for (role, nets, symbol) in roles {
        let asked = [symbol, VnatSelector::All].into_iter().find(|s| policy.vnat.contains(s));
        for net in nets {
            at(*net, &|mark| {
                mark.role = Some(mark.role.map_or(role, |other| other.min(role)));
                mark.asked = mark.asked.into_iter().chain(asked).min();
            });
        }
    }
    for net in vnat_cidrs(policy) {
        at(net, &|mark| {
            mark.role = mark.role.or(Some(Role::Vnat));
            mark.asked = Some(VnatSelector::Cidr(net));
        });
    }
    for net in &policy.allow_conflicting {
        at(*net, &|mark| mark.allowed = true);
    }
    for net in &policy.never_proxy {
        at(*net, &|mark| mark.never = true);
    }
    let hosts = [
        (Exempt::ApiServer, &inputs.api_server),
        (Exempt::NameServer, &inputs.name_servers),
        (Exempt::Gateway, &inputs.gateways),
    ];
    for (why, ips) in hosts {
        for ip in ips {
            at(ip.to_canonical().into(), &|mark| mark.host = mark.host.or(Some(why)));
        }
    }
    marks
}

/// What holds for the addresses of `cidr` that no narrower prefix names.
fn judge(
    cidr: IpNet,
    mark: &Mark,
    around: &[Frame<'_>],
    marks: &BTreeMap<IpNet, Mark>,
    inputs: &Inputs,
) -> (Option<Role>, Verdict) {
    // From narrow to wide, beginning with the prefix itself.
    let wider = || std::iter::once((cidr, mark)).chain(around.iter().rev().map(|frame| (frame.cidr, frame.mark)));
    let longest = |wanted: fn(&Mark) -> bool| wider().find(|(_, mark)| wanted(mark)).map(|(net, _)| net);
    let outer_role = around.last().and_then(|frame| frame.role);
    // A part that --vnat names keeps the role of the subnet it is a part of.
    let role = match mark.role {
        Some(Role::Vnat) => outer_role.or(Some(Role::Vnat)),
        own => own.or(outer_role),
    };
    if let Some(why) = mark.host {
        return (role, Verdict::Exempt(why));
    }
    let Some(subnet) = longest(|mark| mark.role.is_some()) else { return (None, Verdict::Outside) };
    if let Some(never) = longest(|mark| mark.never).filter(|never| never.prefix_len() >= subnet.prefix_len()) {
        return (role, Verdict::Exempt(Exempt::NeverProxy(never)));
    }
    if let Err(why) = may_be_steered(&subnet) {
        return (role, Verdict::In(Mode::Refused { because: Because::Reserved(why.to_string()) }));
    }
    let range: IpNet =
        if cidr.addr().is_ipv4() { inputs.policy.virtual4.into() } else { inputs.policy.virtual6.into() };
    let asked = wider().find_map(|(net, mark)| Some((net.prefix_len(), mark.asked?)));
    let allowed = longest(|mark| mark.allowed).map(|net| net.prefix_len());
    if let Some((_, selector)) = asked.filter(|(length, _)| Some(*length) >= allowed) {
        return (role, Verdict::In(Mode::Virtual { range, because: Because::Asked(selector) }));
    }
    if allowed.is_some() {
        return (role, Verdict::In(Mode::Direct));
    }
    let in_the_way = if inputs.scoped { None } else { conflict(subnet, marks, &inputs.host_routes) };
    let mode = match in_the_way {
        None => Mode::Direct,
        Some(route) if inputs.policy.auto_resolve => Mode::Virtual { range, because: Because::Conflict(route) },
        Some(route) => Mode::Refused { because: Because::Conflict(route) },
    };
    (role, Verdict::In(mode))
}

/// The route that is in the way of `subnet`. What lies inside the subnet and has a rule of its own is not counted: it is
/// excepted, allowed, asked for, or a subnet that is judged by itself.
fn conflict(subnet: IpNet, marks: &BTreeMap<IpNet, Mark>, routes: &[HostRoute]) -> Option<HostRoute> {
    let mut in_the_way = routes.iter().filter(|route| {
        let destination = route.destination.trunc();
        let shared = match () {
            () if route.is_default() => return false,
            () if destination.contains(&subnet) => subnet,
            () if subnet.contains(&destination) => destination,
            () => return false,
        };
        !has_own_rules(shared, subnet, marks)
    });
    // The one that carries the whole subnet now; else the first inside it.
    let rank = |route: &HostRoute| {
        let covers = route.destination.contains(&subnet);
        (!covers, if covers { u8::MAX - route.destination.prefix_len() } else { 0 })
    };
    let first = in_the_way.next()?;
    let best =
        in_the_way.fold(first, |best, route| if (rank(route), route) < (rank(best), best) { route } else { best });
    Some(best.clone())
}

/// Whether rules for less than `subnet` cover all of `shared`, a part of it. Looks only at those that can.
fn has_own_rules(shared: IpNet, subnet: IpNet, marks: &BTreeMap<IpNet, Mark>) -> bool {
    let between = std::iter::successors(Some(shared), IpNet::supernet).take_while(|net| *net != subnet);
    if between.into_iter().any(|net| marks.contains_key(&net)) {
        return true;
    }
    let inside = marks.range((Bound::Excluded(shared), Bound::Unbounded)).map(|(net, _)| *net);
    let inside: Vec<IpNet> = inside.take_while(|net| shared.contains(net)).collect();
    cidr::subtract(&[shared], &inside).is_empty()
}

/// What the user wrote must be possible as it stands, whatever the cluster and the host look like.
fn check_rules(policy: &RoutingPolicy) -> Result<(), SubnetError> {
    let vnat: Vec<IpNet> = vnat_cidrs(policy).collect();
    let lists: [(&'static str, &[IpNet], bool); 4] = [
        ("--vnat", &vnat, true),
        ("--also-proxy", &policy.also_proxy, true),
        ("--never-proxy", &policy.never_proxy, false),
        ("--allow-conflicting-subnets", &policy.allow_conflicting, false),
    ];
    for (place, nets, steered) in lists {
        let mut nets = nets.to_vec();
        nets.sort();
        for net in nets {
            let possible = match net == net.trunc() {
                false => Err(PlanError::HostBits(net)),
                true if steered => may_be_steered(&net),
                true => Ok(()),
            };
            possible.map_err(|why| SubnetError::Rule { place, why })?;
        }
    }
    Ok(())
}
