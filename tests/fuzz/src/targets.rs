//! The parsers, what they are fed, and what must hold whatever that was.

use tpx_core::{
    dns::{Header, Question},
    plan::{Plan, ResolverLink, Road, Scope},
};
use tpx_datapath::remote::protocol::{FRAME_MAX, Hello, Request, VERSION, frame, missing, parse_frame, quotable, take};
use tpx_link::capsule::{Capsule, Decoder, datagram};

/// A parser.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Good messages.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// Whether they begin with their length in four bytes.
    pub(crate) framed: bool,
    /// Whether the input was understood, at least in part. Panics when something is wrong.
    pub(crate) run: fn(&[u8]) -> bool,
}

pub(crate) const ALL: [Target; 3] = [
    Target { name: "request", seeds: requests, framed: true, run: request },
    Target { name: "capsule", seeds: capsules, framed: false, run: capsule },
    Target { name: "dns", seeds: questions, framed: false, run: dns },
];

fn requests() -> Vec<Vec<u8>> {
    let nets = |list: &[&str]| list.iter().filter_map(|net| net.parse().ok()).collect();
    let plan = Plan {
        scope: Scope::Cgroup("/sys/fs/cgroup/user.slice/tpx".into()),
        steer: nets(&["10.96.0.0/12", "fd96::/112"]),
        virtual_subnets: nets(&["246.246.0.0/17"]),
        hidden: nets(&["10.244.0.0/16"]),
        except: nets(&["10.96.0.1/32", "10.96.0.10/32"]),
        name_servers: ["10.96.0.10", "fe80::1"].iter().filter_map(|ip| ip.parse().ok()).collect(),
        protected: ["10.96.0.1"].iter().filter_map(|ip| ip.parse().ok()).collect(),
        resolver: Some(ResolverLink {
            servers: vec![],
            routing_domains: vec!["cluster.local".into(), "emojivoto".into()],
            search_domains: vec!["default.svc.cluster.local".into()],
        }),
        ..Plan::default()
    };
    let floor = Plan { road: Road::Tun, scope: Scope::Workstation, resolver: None, ..plan.clone() };
    let apply = |plan| Request::Apply(Box::new(plan));
    let all = [Request::Hello(Hello { version: VERSION }), apply(plan), apply(floor), Request::Revert, Request::Status];
    all.iter().filter_map(|request| frame(request).ok()).collect()
}

fn request(input: &[u8]) -> bool {
    let mut bytes = input.to_vec();
    let mut understood = false;
    loop {
        let before = bytes.len();
        match (missing(&bytes), parse_frame(&bytes)) {
            (Ok(0), Ok(Some(json))) => assert!(json.len() <= FRAME_MAX && json.len() + 4 <= before),
            (Ok(0), other) => panic!("nothing is missing, and yet {other:?}"),
            (Ok(_), other) => assert_eq!(other, Ok(None)),
            (Err(_), other) => assert!(other.is_err()),
        }
        match take::<Request>(&mut bytes) {
            Ok(Some(request)) => {
                assert!(bytes.len() + 4 <= before);
                understood = true;
                look_at(&request);
            }
            Ok(None) => return understood,
            Err(e) => {
                let text = e.to_string();
                assert!(text.len() < 8 << 10 && !text.contains('\n'), "{text:?}");
                return understood;
            }
        }
    }
}

/// What rootd does with a request before it changes anything.
fn look_at(request: &Request) {
    let again = frame(request).and_then(|mut bytes| take::<Request>(&mut bytes));
    assert_eq!(again.as_ref().map(Option::as_ref), Ok(Some(request)), "it does not survive its own way");
    let Request::Apply(plan) = request else { return };
    if let Err(e) = plan.check() {
        assert!(!quotable(&e.to_string()).contains('\n'));
        return;
    }
    for never in ["0.0.0.0", "8.8.8.8", "127.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255", "::", "::1"] {
        let steered = never.parse().is_ok_and(|ip: std::net::IpAddr| plan.steer.iter().any(|net| net.contains(&ip)));
        // A wide subnet may hold a public address; the rest never.
        assert!(!steered || never == "8.8.8.8", "{never} is steered");
    }
    assert!(plan.steer.iter().all(|net| net.prefix_len() >= 8), "a default route");
    assert!(!plan.protected.iter().chain(&plan.name_servers).any(|ip| plan.steers(*ip)), "a protected address");
    let lists = [&plan.steer, &plan.virtual_subnets, &plan.hidden, &plan.except];
    assert!(lists.iter().map(|list| list.len()).sum::<usize>() <= Plan::MAX_SUBNETS);
}

fn capsules() -> Vec<Vec<u8>> {
    let two = [datagram(&[b"hello"]), datagram(&[b"a", &[7; 300]])].concat();
    // An unknown one (type 0x3f, which is skipped) before a known one.
    let unknown = [&[0x3f, 3, 1, 2, 3][..], &datagram(&[b"x"])].concat();
    vec![datagram(&[b"payload"]).to_vec(), two, unknown]
}

fn capsule(input: &[u8]) -> bool {
    let whole = decode(input, input.len().max(1));
    // However it is cut, the same comes out.
    let step = 1 + input.first().map_or(0, |byte| usize::from(*byte) % 13);
    assert_eq!(decode(input, step), whole, "cut every {step} bytes");
    for capsule in &whole.0 {
        let mut decoder = Decoder::default();
        decoder.push(&capsule.encode());
        assert_eq!(decoder.poll().ok().flatten().as_ref(), Some(capsule), "it does not survive its own way");
    }
    !whole.0.is_empty()
}

/// The capsules of a stream that comes in pieces, and whether it ended in nonsense.
fn decode(input: &[u8], piece: usize) -> (Vec<Capsule>, bool) {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for piece in input.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.poll() {
                Ok(Some(capsule)) => found.push(capsule),
                Ok(None) => break,
                Err(_) => return (found, true),
            }
        }
    }
    (found, false)
}

fn questions() -> Vec<Vec<u8>> {
    let question = |name: &[&str], kind: u8| {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name {
            message.push(label.len() as u8);
            message.extend(label.bytes());
        }
        message.extend([0, 0, kind, 0, 1]);
        message
    };
    vec![question(&["web-app", "emojivoto"], 1), question(&["a", "b", "svc", "cluster", "local"], 28), question(&[], 2)]
}

fn dns(input: &[u8]) -> bool {
    assert_eq!(Header::parse(input).is_some(), input.len() >= Header::LEN);
    let Ok(question) = Question::parse(input) else { return false };
    assert!(Header::LEN + question.wire_len() <= input.len());
    let name = question.name.to_wire();
    assert!(name.len() <= 255, "a name of {} bytes", name.len());
    let text = question.name.to_string();
    // Escapes are for people; nothing reads them again.
    if !text.contains('\\') {
        assert_eq!(text.parse().as_ref(), Ok(&question.name), "{text:?} does not survive its own way");
    }
    true
}
