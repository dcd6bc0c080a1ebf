//! From one state to the next, as a list of steps.

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;
use tpx_core::plan::Plan;
use tpx_ebpf_abi::slot::Slot;

use super::{addresses, own_address, rules, rules::Rule, rules::Store};
use crate::{HostError, routed::Routed};

/// Makes programs forget the answers they had before.
pub const FLUSH: Effect = Effect { program: "ipconfig.exe", arguments: &["/flushdns"] };
/// Makes Windows read the rules of group policy again.
pub const REFRESH_POLICY: Effect =
    Effect { program: "gpupdate.exe", arguments: &["/target:computer", "/force", "/wait:0"] };

/// A program that is run for what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effect {
    /// Its name in the system's folder (`System32`).
    pub program: &'static str,
    /// What it is told.
    pub arguments: &'static [&'static str],
}

/// Desired state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Routes and names.
    pub routed: Routed,
    /// Whether rules have to be among those of group policy too, because somebody else's are.
    pub group_policy: bool,
}

/// One change of the host. Each can be done twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Routes a prefix to the device.
    AddRoute(IpNet),
    /// Undoes it.
    RemoveRoute(IpNet),
    /// Writes a rule over the one with its id, if there is one.
    WriteRule(Store, Rule),
    /// Removes a rule, and the key of group policy with its last rule: empty, it would hide the local ones.
    RemoveRule(Store, String),
    /// Sets the device's list of domains that complete single labels; empty, it has none.
    SetSearchList(Vec<String>),
    /// Runs [`REFRESH_POLICY`].
    RefreshPolicy,
    /// Runs [`FLUSH`].
    FlushCache,
}

/// A rule that is there, as far as it says whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where.
    pub store: Store,
    /// The name of its key.
    pub id: String,
    /// Its comment; empty where it has none.
    pub comment: String,
}

impl Desired {
    /// What `plan` asks for; `there` are the rules that the host has.
    ///
    /// # Errors
    /// As [`Routed::of`], and [`HostError::Refused`] for subnets that Windows does not route.
    pub fn of(slot: Slot, plan: &Plan, there: &[Found]) -> Result<Self, HostError> {
        let mut routed = Routed::of(plan, "Windows")?;
        addresses::check(plan)?;
        routed.hidden.clear();
        for server in &mut routed.names.servers {
            routed.routes.remove(&IpNet::from(*server));
            *server = own_address(*server);
            routed.routes.insert(IpNet::from(*server));
        }
        let foreign = |found: &Found| found.store == Store::GroupPolicy && found.comment != rules::mark(slot);
        Ok(Self { routed, group_policy: there.iter().any(foreign) })
    }

    fn rules(&self, slot: Slot) -> BTreeMap<(Store, String), Rule> {
        let stores = &Store::ALL[..if self.group_policy { 2 } else { 1 }];
        let rules = rules::rules(slot, &self.routed.names);
        stores.iter().flat_map(|store| rules.iter().map(|rule| ((*store, rule.id.clone()), rule.clone()))).collect()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddRoute(net) => write!(f, "add the route to {net}"),
            Self::RemoveRoute(net) => write!(f, "remove the route to {net}"),
            Self::WriteRule(_, rule) => write!(f, "write the name resolution rule {}", rule.id),
            Self::RemoveRule(_, id) => write!(f, "remove the name resolution rule {id}"),
            Self::SetSearchList(_) => f.write_str("set the device's search list"),
            Self::RefreshPolicy => f.write_str("refresh group policy"),
            Self::FlushCache => f.write_str("flush the cache of names"),
        }
    }
}

impl Step {
    fn undoes(&self, other: &Self) -> bool {
        let rule = |step: &Self| match step {
            Self::WriteRule(store, rule) => Some((*store, rule.id.clone())),
            Self::RemoveRule(store, id) => Some((*store, id.clone())),
            _ => None,
        };
        match (self, other) {
            (Self::RemoveRoute(a), Self::AddRoute(b)) | (Self::AddRoute(a), Self::RemoveRoute(b)) => a == b,
            (Self::SetSearchList(_), Self::SetSearchList(_)) => true,
            (Self::RefreshPolicy, other) => rule(other).is_some_and(|(store, _)| store == Store::GroupPolicy),
            (Self::FlushCache, Self::SetSearchList(_)) => true,
            (Self::FlushCache, other) => rule(other).is_some(),
            _ => rule(self).is_some() && rule(self) == rule(other),
        }
    }
}

/// What leads from `before` to `want`; to undo everything, `want` is the default. Roads are there before names lead to
/// them, and go after.
#[must_use]
pub fn steps(slot: Slot, before: &Desired, want: &Desired) -> Vec<Step> {
    let (old, new) = (&before.routed, &want.routed);
    let mut steps: Vec<Step> = new.routes.difference(&old.routes).map(|net| Step::AddRoute(*net)).collect();
    let (old_rules, new_rules) = (before.rules(slot), want.rules(slot));
    let changed = new_rules.iter().filter(|(at, rule)| old_rules.get(at) != Some(rule));
    let mut names: Vec<Step> = changed.map(|((store, _), rule)| Step::WriteRule(*store, rule.clone())).collect();
    let gone = old_rules.into_keys().filter(|at| !new_rules.contains_key(at));
    names.extend(gone.map(|(store, id)| Step::RemoveRule(store, id)));
    if old.names.search != new.names.search {
        names.push(Step::SetSearchList(new.names.search.clone()));
    }
    finish(&mut names);
    steps.extend(names);
    steps.extend(old.routes.difference(&new.routes).map(|net| Step::RemoveRoute(*net)));
    steps
}

/// What leads back to `before` after the first `done` of the [`steps`] to `want`.
#[must_use]
pub fn back(slot: Slot, before: &Desired, want: &Desired, done: usize) -> Vec<Step> {
    let mut forth = steps(slot, before, want);
    forth.truncate(done);
    let mut back = steps(slot, want, before);
    back.retain(|step| forth.iter().any(|other| step.undoes(other)));
    back
}

/// Removes what a crash left: of the rules that are `there`, those that this slot wrote, and the search list, which comes
/// back with the device's GUID. Routes went with the device.
#[must_use]
pub fn sweep(slot: Slot, there: &[Found]) -> Vec<Step> {
    let mark = rules::mark(slot);
    let ours = there.iter().filter(|found| found.comment == mark);
    let mut steps: Vec<Step> = ours.map(|found| Step::RemoveRule(found.store, found.id.clone())).collect();
    steps.push(Step::SetSearchList(Vec::new()));
    finish(&mut steps);
    steps
}

/// The device's GUID: always the same, so that Windows keeps one network profile and one set of leftovers for a slot.
#[must_use]
pub const fn device_guid(slot: Slot) -> u128 {
    0x7470_7830_0000_4000_9000_0000_0000_0000 | ((slot.index() as u128) << 80)
}

/// After rules have changed, Windows has to hear about it.
fn finish(steps: &mut Vec<Step>) {
    let policy =
        |step: &Step| matches!(step, Step::WriteRule(Store::GroupPolicy, _) | Step::RemoveRule(Store::GroupPolicy, _));
    if steps.iter().any(policy) {
        steps.push(Step::RefreshPolicy);
    }
    if !steps.is_empty() {
        steps.push(Step::FlushCache);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::routed::tests::{nets, plan};

    fn wanted(there: &[Found]) -> Desired {
        Desired::of(Slot::FIRST, &plan(), there).unwrap()
    }

    fn found(store: Store, comment: &str) -> Found {
        Found { store, id: "{00000000-0000-0000-0000-000000000001}".into(), comment: comment.into() }
    }

    /// What a host looks like after steps.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct State {
        routes: BTreeSet<IpNet>,
        rules: BTreeMap<(Store, String), Rule>,
        search: Vec<String>,
    }

    impl State {
        fn play(&mut self, steps: &[Step]) {
            for step in steps {
                match step.clone() {
                    Step::AddRoute(net) => assert!(self.routes.insert(net), "{net} is there"),
                    Step::RemoveRoute(net) => assert!(self.routes.remove(&net), "{net} is not there"),
                    Step::WriteRule(store, rule) => drop(self.rules.insert((store, rule.id.clone()), rule)),
                    Step::RemoveRule(store, id) => assert!(self.rules.remove(&(store, id)).is_some()),
                    Step::SetSearchList(list) => self.search = list,
                    Step::RefreshPolicy | Step::FlushCache => {}
                }
            }
        }
    }

    #[test]
    fn the_name_server_is_routed_under_its_address_here() {
        let want = wanted(&[]);
        assert_eq!(want.routed.names.servers, ["211.55.63.200".parse::<std::net::IpAddr>().unwrap()]);
        assert!(want.routed.routes.contains(&"211.55.63.200/32".parse().unwrap()));
        assert!(!want.routed.routes.iter().any(|net| net.to_string().starts_with("246.")));
        assert!(want.routed.hidden.is_empty());
    }

    #[test]
    fn from_nothing_to_the_plan_and_back() {
        let mut host = State::default();
        let up = steps(Slot::FIRST, &Desired::default(), &wanted(&[]));
        host.play(&up);
        let [((store, _), rule)] = &host.rules.iter().collect::<Vec<_>>()[..] else { panic!("{:?}", host.rules) };
        assert_eq!(*store, Store::Local);
        assert_eq!(rule.domains, ["cluster.local", "emojivoto", "emojivoto.svc.cluster.local", "svc.cluster.local"]);
        assert_eq!(host.search, ["emojivoto.svc.cluster.local", "svc.cluster.local"]);
        assert!(!up.contains(&Step::RefreshPolicy));
        let last_route = up.iter().rposition(|s| matches!(s, Step::AddRoute(_))).unwrap();
        assert!(last_route < up.iter().position(|s| matches!(s, Step::WriteRule(..))).unwrap());
        let down = steps(Slot::FIRST, &wanted(&[]), &Desired::default());
        let first_route = down.iter().position(|s| matches!(s, Step::RemoveRoute(_))).unwrap();
        assert!(down.iter().position(|s| *s == Step::FlushCache).unwrap() < first_route);
        host.play(&down);
        assert_eq!(host, State::default());
    }

    #[test]
    fn the_same_plan_again_changes_nothing() {
        assert_eq!(steps(Slot::FIRST, &wanted(&[]), &wanted(&[])), []);
    }

    #[test]
    fn where_group_policy_has_rules_ours_are_there_too() {
        let company = wanted(&[found(Store::GroupPolicy, "")]);
        let up = steps(Slot::FIRST, &wanted(&[]), &company);
        assert!(matches!(&up[..], [Step::WriteRule(Store::GroupPolicy, _), Step::RefreshPolicy, Step::FlushCache]));
        let down = steps(Slot::FIRST, &company, &wanted(&[]));
        assert!(matches!(&down[..], [Step::RemoveRule(Store::GroupPolicy, _), Step::RefreshPolicy, Step::FlushCache]));
        for harmless in [found(Store::Local, ""), found(Store::GroupPolicy, &rules::mark(Slot::FIRST))] {
            assert!(!wanted(&[harmless]).group_policy);
        }
    }

    #[test]
    fn only_rules_with_the_mark_of_this_slot_are_swept() {
        let mark = rules::mark(Slot::FIRST);
        let there = [
            found(Store::Local, &mark),
            found(Store::GroupPolicy, &mark),
            found(Store::Local, ""),
            found(Store::Local, "VPN"),
            found(Store::Local, &rules::mark(Slot::new(1).unwrap())),
        ];
        let id = there[0].id.clone();
        assert_eq!(
            sweep(Slot::FIRST, &there),
            [
                Step::RemoveRule(Store::Local, id.clone()),
                Step::RemoveRule(Store::GroupPolicy, id),
                Step::SetSearchList(vec![]),
                Step::RefreshPolicy,
                Step::FlushCache,
            ]
        );
        assert_eq!(sweep(Slot::FIRST, &there[2..]), [Step::SetSearchList(vec![]), Step::FlushCache]);
    }

    #[test]
    fn a_failure_at_any_step_leads_back_to_what_was_there() {
        let mut plan = plan();
        plan.steer = nets(&["10.96.0.0/16", "10.50.0.0/16"]);
        plan.resolver.as_mut().unwrap().routing_domains = (0..120).map(|n| format!("ns{n}")).collect();
        plan.resolver.as_mut().unwrap().search_domains = vec!["books.svc.cluster.local".into()];
        let after = Desired::of(Slot::FIRST, &plan, &[found(Store::GroupPolicy, "")]).unwrap();
        let forth = steps(Slot::FIRST, &wanted(&[]), &after);
        assert!(forth.len() > 8, "{forth:?}");
        for done in 0..=forth.len() {
            let mut host = State::default();
            host.play(&steps(Slot::FIRST, &Desired::default(), &wanted(&[])));
            let before = host.clone();
            host.play(&forth[..done]);
            host.play(&back(Slot::FIRST, &wanted(&[]), &after, done));
            assert_eq!(host, before, "after {done} steps");
        }
    }

    #[test]
    fn each_slot_has_a_device_of_its_own() {
        let guids: BTreeSet<u128> = Slot::all().map(device_guid).collect();
        assert_eq!(guids.len(), Slot::COUNT as usize);
        assert_eq!(device_guid(Slot::new(3).unwrap()), 0x7470_7830_0003_4000_9000_0000_0000_0000);
    }

    #[test]
    fn one_process_tree_is_not_expressible() {
        let plan = Plan { scope: tpx_core::plan::Scope::Cgroup("/sys/fs/cgroup/x".into()), ..plan() };
        let error = Desired::of(Slot::FIRST, &plan, &[]).unwrap_err();
        assert!(matches!(&error, HostError::Unsupported(why) if why.contains("Windows")), "{error}");
    }
}
