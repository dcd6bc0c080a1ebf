//! Messages between the user daemon and tpx-rootd, and the frames that hold them.
//!
//! A frame is a length (32 bits, big-endian) and so many bytes of JSON. Each request has one reply, in order. Files
//! travel with the first byte of the frame they belong to (SCM_RIGHTS, unix(7)); only [`Reply::Applied`] has some.

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tpx_core::plan::Plan;

use crate::{
    HostError, Tables,
    linux::{Bridges, Layout},
};

/// Version of this protocol. Both ends have to speak the same one; [`Hello`] and [`Welcome`] stay readable for all.
pub const VERSION: u32 = 6;
/// Longest JSON of a frame, in bytes. A plan of the greatest allowed size takes less than two thirds of it.
pub const FRAME_MAX: usize = 4 << 20;
/// Most files with one frame. The kernel's own limit is 253.
pub const FILES_MAX: usize = 64;

/// Longest text that is quoted of what the other side sent, in characters.
const QUOTE_MAX: usize = 300;

const PREFIX: usize = 4;

/// What the user daemon asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Always the first one.
    Hello(Hello),
    /// Make the host look like this. The first success makes the connection the session.
    Apply(Box<Plan>),
    /// Undo everything and give the session up.
    Revert,
    /// Say what is going on.
    Status,
    /// Say what stands in the maps of the caller's own session.
    Tables,
    /// Move the calling process into a session's process tree.
    Enter(Enter),
}

/// Into which process tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enter {
    /// The cgroup of a session with `Scope::Tree`, as its [`Layout::scope`] says it. The caller is the session's user,
    /// or root.
    pub cgroup: PathBuf,
}

/// The user daemon's first words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the caller.
    pub version: u32,
}

/// What tpx-rootd answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Welcome(Welcome),
    /// To anyone but the owner; the connection ends here.
    Denied(Denied),
    /// To [`Request::Apply`]: done, and the files follow this layout.
    Applied(Layout),
    /// To [`Request::Apply`]: another session serves the whole workstation.
    Busy(Session),
    /// To [`Request::Enter`]: the process is inside.
    Entered,
    /// To [`Request::Revert`].
    Reverted,
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Tables`].
    Tables(Box<Tables>),
    /// The request could not be carried out.
    Failed(Failure),
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`VERSION`] of tpx-rootd.
    pub version: u32,
    /// Its release, for people.
    #[serde(default)]
    pub release: String,
    /// What it can do: [`Welcome::TUN`], [`Welcome::EXPRESS_TCP`], [`Welcome::DNS`], [`Welcome::STAYS`]. Unknown
    /// ones mean nothing.
    #[serde(default)]
    pub features: Vec<String>,
    /// Why the express lane is not available, as one line. The floor alone is; plan for `Road::Tun` then.
    #[serde(default)]
    pub unavailable: Option<String>,
    /// What the kernel lacks, with what is done instead.
    #[serde(default)]
    pub missing: Vec<Missing>,
    /// Who has sessions, by slot.
    #[serde(default)]
    pub sessions: Vec<Session>,
}

impl Welcome {
    /// The floor, alone or under the express lane.
    pub const TUN: &str = "tun";
    /// TCP connections by the express lane.
    pub const EXPRESS_TCP: &str = "express_tcp";
    /// Name servers stood in for.
    pub const DNS: &str = "dns";
    /// It does not leave when nobody needs it: whoever keeps it will start it again when it has ended.
    pub const STAYS: &str = "stays";
}

/// Something that the kernel lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// One word for it.
    pub feature: String,
    /// What it is, and what would bring it.
    pub about: String,
    /// What is done instead.
    pub fallback: String,
}

/// The caller is not whom tpx-rootd serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// The user it serves.
    pub owner: u32,
}

/// A connection that has a plan applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its user.
    pub uid: u32,
    /// Its process.
    pub pid: u32,
    /// Number of its slot.
    pub slot: u32,
    /// Whose cluster it is, for people.
    pub scope: String,
}

/// What is going on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Process of tpx-rootd.
    pub pid: u32,
    /// The user it serves.
    pub owner: u32,
    /// Who has sessions, by slot.
    pub sessions: Vec<Session>,
    /// The plan of the session that asks; without one, that of the first session.
    pub plan: Option<Plan>,
    /// Why the express lane is not available, as one line.
    pub unavailable: Option<String>,
    /// The bridges whose containers are served.
    #[serde(default)]
    pub bridges: Bridges,
}

/// A [`HostError`] on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which one.
    pub kind: FailureKind,
    /// Its text; for [`FailureKind::System`] only the step that failed.
    pub message: String,
    /// The operating system's word.
    pub cause: Option<Cause>,
}

/// The kinds of [`HostError`], and a broken conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// [`HostError::Refused`].
    Refused,
    /// [`HostError::Unsupported`].
    Unsupported,
    /// [`HostError::System`].
    System,
    /// The request made no sense; the connection ends here.
    Protocol,
}

/// An I/O error on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// errno(3).
    Errno(i32),
    /// Anything else.
    Text(String),
}

impl Failure {
    /// A broken conversation.
    #[must_use]
    pub fn protocol(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Protocol, message: message.into(), cause: None }
    }
}

impl From<&HostError> for Failure {
    fn from(e: &HostError) -> Self {
        match e {
            HostError::Refused(m) => Self { kind: FailureKind::Refused, message: quotable(m), cause: None },
            HostError::Unsupported(m) => Self { kind: FailureKind::Unsupported, message: m.clone(), cause: None },
            HostError::System { what, source } => {
                let cause = source.raw_os_error().map_or_else(|| Cause::Text(source.to_string()), Cause::Errno);
                Self { kind: FailureKind::System, message: what.clone(), cause: Some(cause) }
            }
        }
    }
}

impl From<Failure> for HostError {
    fn from(f: Failure) -> Self {
        let source = match f.cause {
            Some(Cause::Errno(n)) => io::Error::from_raw_os_error(n),
            Some(Cause::Text(t)) => io::Error::other(t),
            None => io::Error::other("no reason given"),
        };
        match f.kind {
            FailureKind::Refused => Self::Refused(f.message),
            FailureKind::Unsupported => Self::Unsupported(f.message),
            FailureKind::System => Self::System { what: f.message, source },
            FailureKind::Protocol => {
                Self::System { what: "tpx-rootd".into(), source: io::Error::new(io::ErrorKind::InvalidData, f.message) }
            }
        }
    }
}

/// A text that may repeat words of the other side, made fit for a log and an answer: of bounded length and on one line.
#[must_use]
pub fn quotable(text: &str) -> String {
    let mut out = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == QUOTE_MAX {
            out.push('…');
            break;
        }
        match c {
            c if c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                out.extend(c.escape_default());
            }
            c => out.push(c),
        }
    }
    out
}

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length goes beyond [`FRAME_MAX`].
    #[error("a message of {0} bytes, {FRAME_MAX} are allowed")]
    TooLong(usize),
    /// The bytes are no message of this protocol.
    #[error("not a message: {0}")]
    Malformed(String),
}

/// The JSON of the frame that `bytes` begins with, once it is complete. The frame takes four bytes more than that.
///
/// # Errors
/// [`FrameError::TooLong`], as soon as the length is known.
pub fn parse_frame(bytes: &[u8]) -> Result<Option<&[u8]>, FrameError> {
    if missing(bytes)? > 0 {
        return Ok(None);
    }
    let length = bytes.first_chunk::<PREFIX>().map_or(0, |p| u32::from_be_bytes(*p) as usize);
    Ok(bytes.get(PREFIX..PREFIX + length))
}

/// How many bytes the frame that `bytes` begins with still lacks, as far as that is known: first those of its length,
/// then the rest.
///
/// # Errors
/// [`FrameError::TooLong`], as soon as the length is known.
pub fn missing(bytes: &[u8]) -> Result<usize, FrameError> {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
        return Ok(PREFIX - bytes.len());
    };
    let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
    if length > FRAME_MAX {
        return Err(FrameError::TooLong(length));
    }
    Ok((PREFIX + length).saturating_sub(bytes.len()))
}

/// Takes the first message off `bytes`, once it is complete.
///
/// # Errors
/// [`FrameError`]; the conversation is over then.
pub fn take<T: DeserializeOwned>(bytes: &mut Vec<u8>) -> Result<Option<T>, FrameError> {
    let Some(json) = parse_frame(bytes)? else {
        return Ok(None);
    };
    let length = PREFIX + json.len();
    let message = serde_json::from_slice(json).map_err(|e| FrameError::Malformed(quotable(&e.to_string())))?;
    bytes.drain(..length);
    Ok(Some(message))
}

/// A message as a frame.
///
/// # Errors
/// [`FrameError`], when it is too long or cannot be written as JSON.
pub fn frame<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; PREFIX];
    serde_json::to_writer(&mut bytes, message).map_err(|e| FrameError::Malformed(e.to_string()))?;
    let length = bytes.len() - PREFIX;
    let prefix = u32::try_from(length).ok().filter(|_| length <= FRAME_MAX).ok_or(FrameError::TooLong(length))?;
    bytes[..PREFIX].copy_from_slice(&prefix.to_be_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RuleRow;
    use proptest::prelude::*;

    fn apply(subnets: usize) -> Request {
        let steer = (0..subnets).map(|i| format!("fd96:{i:x}::/64").parse().unwrap()).collect();
        Request::Apply(Box::new(Plan { steer, ..Plan::default() }))
    }

    #[test]
    fn the_greatest_plan_fits() {
        let nets = |first: u16| -> Vec<_> {
            let net = |i: usize| format!("{first:x}:{i:x}:ffff:ffff:ffff:ffff:ffff:ffff/128").parse().unwrap();
            (4096..4096 + Plan::MAX_SUBNETS / 4).map(net).collect()
        };
        let label = "a".repeat(63);
        let domains = vec![format!("{label}.{label}.{label}.{}", "a".repeat(61)); Plan::MAX_DOMAINS];
        let plan = Plan {
            scope: tpx_core::plan::Scope::Cgroup(format!("/{}", "c".repeat(4094)).into()),
            steer: nets(0xfd01),
            virtual_subnets: nets(0xfd02),
            hidden: nets(0xfd03),
            except: nets(0xfd04),
            resolver: Some(tpx_core::plan::ResolverLink {
                servers: vec![],
                routing_domains: domains.clone(),
                search_domains: domains,
            }),
            container_devices: vec!["br-????????????".parse().unwrap(); Plan::MAX_CONTAINER_DEVICES],
            deny: [0xfd05, 0xfd06, 0xfd07, 0xfd08].into_iter().flat_map(nets).collect(),
            deny_ports: (64_000..64_000 + Plan::MAX_DENY_PORTS as u16).collect(),
            ..Plan::default()
        };
        plan.check().unwrap();
        let mut bytes = frame(&Request::Apply(Box::new(plan.clone()))).unwrap();
        assert!(bytes.len() < FRAME_MAX / 3 * 2, "{}", bytes.len());
        assert_eq!(take::<Request>(&mut bytes).unwrap(), Some(Request::Apply(Box::new(plan))));
    }

    #[test]
    fn the_greatest_tables_fit() {
        let row = |i: u32, action: &str| RuleRow {
            cidr: format!("fd01:{i:x}:ffff:ffff:ffff:ffff:ffff:ffff/128").parse().unwrap(),
            action: action.into(),
        };
        let rules = (0..tpx_ebpf_abi::maps::RULES_MAX).flat_map(|i| [row(i, "virtual"), row(i, "deny")]).collect();
        let denied_ports = (64_000..64_000 + Plan::MAX_DENY_PORTS as u16).collect();
        let tables = Tables { rules, denied_ports, name_servers: Vec::new() };
        let bytes = frame(&Reply::Tables(Box::new(tables))).unwrap();
        assert!(bytes.len() < FRAME_MAX / 3 * 2, "{}", bytes.len());
    }

    #[test]
    fn lists_beyond_their_bound_are_no_message() {
        let mut bytes = frame(&apply(Plan::MAX_SUBNETS + 10_000)).unwrap();
        let e = take::<Request>(&mut bytes).unwrap_err().to_string();
        assert!(e.contains("more than 16384 entries"), "{e}");
    }

    #[test]
    fn what_is_quoted_is_short_and_on_one_line() {
        let odd = format!(r#"{{"{}\nforged line\u001b[31m\u202e":1}}"#, "x".repeat(5000));
        for json in [odd.clone(), odd.replace(&"x".repeat(5000), "x")] {
            let mut bytes = (json.len() as u32).to_be_bytes().to_vec();
            bytes.extend(json.bytes());
            let e = take::<Request>(&mut bytes).unwrap_err().to_string();
            assert!(e.chars().count() < QUOTE_MAX + 100, "{e}");
            assert!(!e.contains(['\n', '\u{1b}', '\u{202e}']), "{e:?}");
        }
        let failure = Failure::from(&HostError::Refused("y\n".repeat(9000)));
        assert!(failure.message.chars().count() < 3 * QUOTE_MAX && !failure.message.contains('\n'));
        assert_eq!(quotable("é ok"), "é ok");
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_the_bytes_arrive() {
        let prefix = u32::try_from(FRAME_MAX).unwrap();
        assert_eq!(parse_frame(&prefix.to_be_bytes()), Ok(None));
        assert_eq!(missing(&prefix.to_be_bytes()), Ok(FRAME_MAX));
        assert_eq!(parse_frame(&(prefix + 1).to_be_bytes()), Err(FrameError::TooLong(FRAME_MAX + 1)));
        assert!(matches!(frame(&"x".repeat(FRAME_MAX)), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn the_first_words_are_understood_by_other_versions() {
        let later = br#"{"hello":{"version":7,"colour":"green"}}"#;
        assert_eq!(serde_json::from_slice::<Request>(later).unwrap(), Request::Hello(Hello { version: 7 }));
        let later = br#"{"welcome":{"version":7,"mood":1}}"#;
        assert!(matches!(serde_json::from_slice(later).unwrap(), Reply::Welcome(Welcome { version: 7, .. })));
    }

    #[test]
    fn host_errors_arrive_as_they_were() {
        for e in [
            HostError::Refused("the default route".into()),
            HostError::Unsupported("no BPF".into()),
            HostError::System { what: "ip rule".into(), source: io::Error::from_raw_os_error(1) },
            HostError::System { what: "ip rule".into(), source: io::Error::other("odd") },
        ] {
            let failure = serde_json::to_vec(&Failure::from(&e)).unwrap();
            let back = HostError::from(serde_json::from_slice::<Failure>(&failure).unwrap());
            assert_eq!(e.to_string(), back.to_string());
        }
    }

    proptest! {
        #[test]
        fn messages_arrive_however_they_are_cut(counts in prop::collection::vec(0usize..4, 1..5), cut in 1usize..40) {
            let sent: Vec<_> = counts.iter().map(|n| apply(*n)).collect();
            let bytes: Vec<u8> = sent.iter().flat_map(|m| frame(m).unwrap()).collect();
            let (mut buffer, mut got) = (Vec::new(), Vec::new());
            for piece in bytes.chunks(cut) {
                buffer.extend_from_slice(piece);
                prop_assert_eq!(missing(&buffer).unwrap() == 0, parse_frame(&buffer).unwrap().is_some());
                while let Some(m) = take::<Request>(&mut buffer).unwrap() {
                    got.push(m);
                }
            }
            prop_assert_eq!(got, sent);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn any_bytes_are_understood_or_refused(mut bytes: Vec<u8>) {
            let before = bytes.len();
            match take::<Request>(&mut bytes) {
                Ok(Some(_)) => prop_assert!(bytes.len() + PREFIX <= before),
                Ok(None) | Err(_) => prop_assert_eq!(bytes.len(), before),
            }
        }

        #[test]
        fn any_json_sized_body_is_understood_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
            bytes.extend_from_slice(&body);
            prop_assert!(!matches!(take::<Request>(&mut bytes), Ok(None)));
        }

        #[test]
        fn damaged_messages_never_pass_for_longer_ones(at in 0usize..60, value: u8) {
            let mut bytes = frame(&apply(2)).unwrap();
            let at = at % bytes.len();
            bytes[at] = value;
            let length = bytes.len();
            if let Ok(Some(_)) = take::<Request>(&mut bytes) {
                prop_assert!(bytes.len() < length);
            }
        }
    }
}
