//! Whom to serve.

use anyhow::Context as _;
use nix::unistd::{Uid, User};

/// The user identifier behind `asked` (a number or a name). Without one: the user who called sudo, else the own one.
///
/// # Errors
/// When there is no such user.
pub(crate) fn resolve(asked: Option<&str>) -> anyhow::Result<u32> {
    let sudo = std::env::var("SUDO_UID").ok();
    match asked.or(sudo.as_deref()) {
        Some(name) => by_name(name),
        None => Ok(Uid::current().as_raw()),
    }
}

fn by_name(name: &str) -> anyhow::Result<u32> {
    if let Ok(uid) = name.parse() {
        return Ok(uid);
    }
    let user = User::from_name(name).with_context(|| format!("cannot look up the user `{name}`"))?;
    let user = user.with_context(|| format!("there is no user `{name}`: give --owner a name from `getent passwd`"))?;
    Ok(user.uid.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names() {
        assert_eq!(by_name("1234").unwrap(), 1234);
        assert_eq!(by_name("root").unwrap(), 0);
        let e = by_name("no-such-user-here").unwrap_err().to_string();
        assert!(e.contains("no-such-user-here"), "{e}");
    }
}
