//! What the user daemon logs: `$TPX_LOG` where it is set, else the configured level, which is known only once somebody
//! asks to connect.

use std::sync::OnceLock;

use tpx_core::config::LogLevel;
use tracing_subscriber::EnvFilter;

type Change = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// Changes the filter; absent where `$TPX_LOG` decides.
static CHANGE: OnceLock<Change> = OnceLock::new();

/// Begins to log, to standard error.
pub(super) fn start() {
    let from_env = EnvFilter::try_from_env("TPX_LOG").ok();
    let fixed = from_env.is_some();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(from_env.unwrap_or_else(|| EnvFilter::new(LogLevel::Info.word())))
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .with_filter_reloading();
    let handle = builder.reload_handle();
    builder.init();
    if !fixed {
        let _ = CHANGE.set(Box::new(move |filter| drop(handle.reload(filter))));
    }
}

/// Logs at `level` from now on.
pub(super) fn set(level: LogLevel) {
    if let Some(change) = CHANGE.get() {
        change(EnvFilter::new(level.word()));
    }
}
