//! Names: who answers a question, without asking anybody.
//!
//! A laptop that joined a cluster asks its usual name servers; tpx sits in their place. For every question it must be
//! decided whether the cluster answers it, the original server, or both in turn. That decision is [`decide`], a total
//! function of the [`PolicyConfig`] and the [`Question`]. The rule that matters most: a name that could be the
//! cluster's is never shown to the original servers, also when the cluster does not know it.

mod cache;
mod link;
mod message;
mod name;
mod policy;
mod resolv_conf;
mod reverse;

pub use cache::Cache;
pub use link::LinkDomains;
pub use message::{Header, Opcode, Question, QuestionError, RecordType};
pub use name::{Name, NameError};
pub use policy::{Alias, Decision, PolicyConfig, decide};
pub use resolv_conf::{NameServer, ResolvConf, parse_resolv_conf};
pub use reverse::{reverse_address, reverse_name, reverse_net};
