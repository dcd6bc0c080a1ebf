//! The socket in the file system: made for one owner, taken over from a dead predecessor, never from a live one.

use std::{
    fs::{self, DirBuilder},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _},
            net::{UnixListener as StdListener, UnixStream as StdStream},
        },
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use rustix::{
    fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Uid, chmod, chownat, flock, fstat, open},
    process::geteuid,
};
use tokio::net::UnixListener;

/// A listening socket whose file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    /// The socket.
    pub(crate) listener: UnixListener,
    path: PathBuf,
    /// Device and inode, so that a successor's file is left alone.
    identity: (u64, u64),
}

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity)
            && let Err(e) = fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

/// Listens at `path` for `owner`. Directories that are missing are made, readable for all.
///
/// # Errors
/// When another tpx-rootd listens there, or the file system says no.
pub(crate) fn bind(path: &Path, owner: u32) -> anyhow::Result<Socket> {
    let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    // Two that start at one time must not take the file from each other. Whoever may open the lock may keep it: nobody else may.
    let lock = lock_file(path);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let locked = open(&lock, flags, Mode::RUSR | Mode::WUSR)
        .and_then(|file| flock(&file, FlockOperation::LockExclusive).map(|()| file));
    let _lock = locked.with_context(|| format!("cannot lock {}", lock.display()))?;
    remove_stale(path)?;
    // Whoever comes in before the file has its owner is told apart by SO_PEERCRED.
    let listener = StdListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    let identity = hand_over(path, owner).with_context(|| format!("cannot give {} to user {owner}", path.display()))?;
    listener.set_nonblocking(true)?;
    Ok(Socket { listener: UnixListener::from_std(listener)?, path: path.into(), identity })
}

/// Beside the socket.
fn lock_file(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    path.with_file_name(name)
}

/// Gives the socket at `path` to `owner`; its device and inode. Who may write into the directory may have put something
/// else there by now (a link to a file of root's): what is changed is what was looked at, and only a socket of this
/// process's user.
fn hand_over(path: &Path, owner: u32) -> io::Result<(u64, u64)> {
    let socket = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&socket)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || stat.st_uid != geteuid().as_raw() {
        return Err(io::Error::other("somebody has put something else there"));
    }
    // Only a path takes a mode for what O_PATH has opened (open(2)).
    chmod(format!("/proc/self/fd/{}", socket.as_raw_fd()), Mode::from_raw_mode(0o660))?;
    chownat(&socket, "", Some(Uid::from_raw(owner)), None, AtFlags::EMPTY_PATH)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("cannot look at {}", path.display()))?,
    };
    if !metadata.file_type().is_socket() {
        bail!("{} is in the way and no socket: remove it or choose another --socket", path.display());
    }
    match StdStream::connect(path) {
        Ok(_) => bail!(
            "another tpx-rootd serves at {}: stop it first (`systemctl stop tpx-rootd`) or choose another --socket",
            path.display()
        ),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("cannot remove the stale {}", path.display()))
        }
        Err(e) => Err(e).with_context(|| format!("cannot tell whether {} is in use", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn me() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[tokio::test]
    async fn is_for_the_owner_and_goes_with_the_process() {
        let dir = directory();
        let path = dir.path().join("run/tpx/rootd.sock");
        let socket = bind(&path, me()).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.uid()), (0o660, me()));
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o755);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = directory();
        let path = dir.path().join("s");
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = bind(&path, me()).unwrap();
        let e = bind(&path, me()).unwrap_err().to_string();
        assert!(e.starts_with("another tpx-rootd serves at"), "{e}");
        drop(first);
        bind(&path, me()).unwrap();
    }

    #[test]
    fn what_was_put_in_place_of_the_socket_is_not_given_away() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = directory();
        let (secret, path) = (dir.path().join("secret"), dir.path().join("s"));
        fs::write(&secret, "").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        assert!(hand_over(&path, me()).is_err());
        fs::remove_file(&path).unwrap();
        fs::hard_link(&secret, &path).unwrap();
        assert!(hand_over(&path, me()).is_err());
        assert_eq!(fs::metadata(&secret).unwrap().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn nobody_else_can_hold_the_lock() {
        let dir = directory();
        let path = dir.path().join("s");
        // What everybody may do.
        let handle = fs::File::open(dir.path()).unwrap();
        flock(&handle, FlockOperation::LockExclusive).unwrap();
        drop(bind(&path, me()).unwrap());
        assert_eq!(fs::metadata(lock_file(&path)).unwrap().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let dir = directory();
        let path = dir.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert!(bind(&path, me()).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn the_file_of_a_successor_is_left_alone() {
        let dir = directory();
        let path = dir.path().join("s");
        let first = bind(&path, me()).unwrap();
        fs::remove_file(&path).unwrap();
        let second = bind(&path, me()).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
    }
}
