//! The OCI image layout in one tar file, as `ctr images import` reads it. No times, no owners: equal input, equal bytes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// One image: a program and how it is started.
pub(crate) struct Image {
    pub(crate) name: String,
    /// The file's name in the image's root folder.
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) user: String,
}

/// Several images that share their blobs.
pub(crate) struct Archive {
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: Vec<Value>,
}

impl Archive {
    pub(crate) fn new() -> Archive {
        Archive { blobs: BTreeMap::new(), manifests: Vec::new() }
    }

    /// Adds an image whose only layer is `program`.
    pub(crate) fn add(&mut self, image: &Image, program: &[u8]) -> Result<()> {
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", layer(&image.program, program)?);
        let entrypoint: Vec<String> =
            std::iter::once(format!("/{}", image.program)).chain(image.arguments.iter().cloned()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"User": image.user, "Entrypoint": entrypoint, "WorkingDir": "/", "Env": ["PATH=/"]},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer]});
        let mut manifest = self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
        manifest["annotations"] =
            json!({"io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": image.name});
        self.manifests.push(manifest);
        Ok(())
    }

    fn blob(&mut self, media: &str, bytes: Vec<u8>) -> Value {
        let digest = super::hex(&Sha256::digest(&bytes));
        let descriptor = json!({"mediaType": media, "digest": format!("sha256:{digest}"), "size": bytes.len()});
        self.blobs.insert(digest, bytes);
        descriptor
    }

    /// Writes the archive in one piece: a reader sees the old one or the new one. Equal bytes leave the old one as it is.
    pub(crate) fn write(self, path: &Path) -> Result<()> {
        let mut tar = tar::Builder::new(Vec::new());
        put(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": self.manifests});
        put(&mut tar, "index.json", index.to_string().as_bytes(), 0o644)?;
        for (digest, bytes) in &self.blobs {
            put(&mut tar, &format!("blobs/sha256/{digest}"), bytes, 0o644)?;
        }
        replace(path, &tar.into_inner()?, 0o644)
    }
}

/// Makes `path` have these bytes, in one piece, unless it has.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let new = path.with_extension("new");
    fs::write(&new, bytes).with_context(|| format!("cannot write {}", new.display()))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
    fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))
}

/// A root folder with the program and the places where a container's own mounts go.
fn layer(name: &str, program: &[u8]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (dir, mode) in [("dev/", 0o755), ("etc/", 0o755), ("proc/", 0o755), ("sys/", 0o755), ("tmp/", 0o1777)] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        tar.append_data(&mut header, dir, std::io::empty())?;
    }
    put(&mut tar, name, program, 0o755)?;
    Ok(tar.into_inner()?)
}

fn put<W: std::io::Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    Ok(tar.append_data(&mut header, name, bytes)?)
}
