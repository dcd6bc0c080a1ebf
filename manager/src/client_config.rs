//! What the cluster's administrator configures laptops with: a mounted ConfigMap's file.
//!
//! The kubelet exchanges the file when the ConfigMap changes, comes or goes. It is only passed on: laptops know its keys.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{Stream, stream};
use tpx_api::Facts;

/// How often the file is looked at. The kubelet itself takes up to a minute.
const PAUSE: Duration = Duration::from_secs(5);

/// The text at once, then each time that it is another one; `None`: there is none that laptops should have.
pub(crate) fn watch(path: PathBuf) -> impl Stream<Item = Option<String>> + Send {
    stream::unfold((path, None), |(path, mut last)| async move {
        loop {
            let before = last.is_some();
            if before {
                tokio::time::sleep(PAUSE).await;
            }
            let now = read(&path);
            if before && last.as_ref() == Some(&now) {
                continue;
            }
            last = Some(now.clone());
            let text = match now {
                Ok(text) => text,
                Err(reason) => {
                    tracing::warn!("laptops get no configuration from {}: {reason}", path.display());
                    None
                }
            };
            return Some((text, (path, last)));
        }
    })
}

/// Reads the file, which need not be there.
fn read(path: &Path) -> Result<Option<String>, String> {
    let limit = Facts::MAX_CLIENT_CONFIG;
    let mut bytes = Vec::new();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() > limit {
        return Err(format!("it is longer than {limit} bytes"));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, pin::pin};

    use futures::StreamExt;

    use super::*;

    /// Changed as the kubelet does it: a link is exchanged.
    #[tokio::test(start_paused = true)]
    async fn it_comes_changes_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yml");
        let put = |name: &str, text: &[u8]| {
            fs::write(folder.path().join(name), text).unwrap();
            let link = folder.path().join("new");
            symlink(name, &link).unwrap();
            fs::rename(link, &path).unwrap();
        };
        let mut texts = pin!(watch(path.clone()));
        assert_eq!(texts.next().await, Some(None));
        put("1", b"a: 1");
        assert_eq!(texts.next().await, Some(Some("a: 1".to_owned())));
        put("2", b"a: 2");
        assert_eq!(texts.next().await, Some(Some("a: 2".to_owned())));
        // The same text once more is no news.
        put("3", b"a: 2");
        assert!(tokio::time::timeout(PAUSE * 3, texts.next()).await.is_err());
        put("4", &[b'#'; Facts::MAX_CLIENT_CONFIG]);
        assert_eq!(texts.next().await.unwrap().unwrap().len(), Facts::MAX_CLIENT_CONFIG);
        put("5", &[b'#'; Facts::MAX_CLIENT_CONFIG + 1]);
        assert_eq!(texts.next().await, Some(None));
        put("6", b"a: 3");
        assert_eq!(texts.next().await, Some(Some("a: 3".to_owned())));
        put("7", b"\xff");
        assert_eq!(texts.next().await, Some(None));
        fs::remove_file(&path).unwrap();
        assert_eq!(texts.next().await, Some(None));
    }
}
