//! Names for addresses, as the cluster's own name server gives them: what people recognise beside numbers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RData, RecordType},
};
use tpx_dns::ClusterResolver;

/// Longest that somebody who looks at a table waits for names; the rest is without.
const PATIENCE: Duration = Duration::from_secs(1);
/// Questions at once.
const AT_ONCE: usize = 16;
/// Most addresses that are asked for one table.
const MOST: usize = 512;
/// A name, or that there is none, is believed this long.
const KEPT: Duration = Duration::from_secs(30);

/// Asks and remembers.
#[derive(Clone)]
pub(super) struct ServiceNames {
    resolver: Arc<dyn ClusterResolver>,
    known: Arc<Mutex<HashMap<IpAddr, (Instant, Option<String>)>>>,
}

impl ServiceNames {
    /// Asks `resolver`.
    pub(super) fn new(resolver: Arc<dyn ClusterResolver>) -> Self {
        Self { resolver, known: Arc::default() }
    }

    /// The names of those of `addresses` (real ones) that the cluster knows.
    pub(super) async fn of(&self, addresses: BTreeSet<IpAddr>, cluster_domain: &str) -> BTreeMap<IpAddr, String> {
        let wanted: Vec<IpAddr> = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|_, (since, _)| since.elapsed() < KEPT);
            addresses.iter().filter(|ip| !known.contains_key(ip)).copied().take(MOST).collect()
        };
        let questions = futures::stream::iter(wanted).for_each_concurrent(AT_ONCE, |ip| async move {
            if let Some(answer) = self.ask(ip, cluster_domain).await {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert(ip, (Instant::now(), answer));
            }
        });
        let _ = tokio::time::timeout(PATIENCE, questions).await;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let name = |ip: IpAddr| Some((ip, known.get(&ip)?.1.clone()?));
        addresses.into_iter().filter_map(name).collect()
    }

    /// `None` when there was no answer; inside, `None` when there is no name.
    async fn ask(&self, ip: IpAddr, cluster_domain: &str) -> Option<Option<String>> {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from(ip), RecordType::PTR));
        let answer = self.resolver.resolve(&query.to_vec().ok()?).await.ok()?;
        Some(shortest(&Message::from_vec(&answer).ok()?, cluster_domain))
    }
}

/// The first name of the answer, without what every name of the cluster ends in.
fn shortest(answer: &Message, cluster_domain: &str) -> Option<String> {
    let name = answer.answers.iter().find_map(|record| match &record.data {
        RData::PTR(name) => Some(name.0.to_lowercase().to_string()),
        _ => None,
    })?;
    let name = name.trim_end_matches('.');
    let end = format!(".svc.{cluster_domain}");
    Some(name.strip_suffix(&end).unwrap_or(name).to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use async_trait::async_trait;
    use hickory_proto::rr::{Record, rdata::PTR};
    use tpx_dns::ResolveError;

    use super::*;

    /// Knows 10.96.0.10, fails for 10.96.0.11, and has nothing for the rest.
    #[derive(Default)]
    struct Cluster {
        asked: AtomicUsize,
    }

    #[async_trait]
    impl ClusterResolver for Cluster {
        async fn resolve(&self, query: &[u8]) -> Result<Vec<u8>, ResolveError> {
            self.asked.fetch_add(1, Relaxed);
            let mut message = Message::from_vec(query).unwrap();
            let name = message.queries[0].name().clone();
            if name == Name::from("10.96.0.11".parse::<IpAddr>().unwrap()) {
                return Err(ResolveError::TimedOut);
            }
            if name == Name::from("10.96.0.10".parse::<IpAddr>().unwrap()) {
                let target = Name::from_ascii("kube-dns.kube-system.svc.Cluster.local.").unwrap();
                message.add_answer(Record::from_rdata(name, 5, RData::PTR(PTR(target))));
            }
            Ok(message.to_vec().unwrap())
        }
    }

    #[tokio::test]
    async fn names_are_asked_once_and_shortened() {
        let cluster = Arc::new(Cluster::default());
        let names = ServiceNames::new(Arc::clone(&cluster) as Arc<dyn ClusterResolver>);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let all: BTreeSet<IpAddr> = ["10.96.0.10", "10.96.0.11", "fd00::1"].map(ip).into();
        let found = names.of(all.clone(), "cluster.local").await;
        assert_eq!(found, [(ip("10.96.0.10"), "kube-dns.kube-system".to_owned())].into());
        assert_eq!(cluster.asked.load(Relaxed), 3);
        assert_eq!(names.of(all, "cluster.local").await, found);
        // Only what was not answered is asked again.
        assert_eq!(cluster.asked.load(Relaxed), 4);
    }
}
