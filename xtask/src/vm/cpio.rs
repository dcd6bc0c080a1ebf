//! The archive that the kernel unpacks into its first file system: cpio, in the format that is called newc
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTERS: u32 = 0o020_600;

/// An archive in the making.
#[derive(Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<String>,
}

impl Cpio {
    /// Adds a file that may be executed, and the folders above it.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        if let Some(above) = Path::new(path).parent().and_then(Path::to_str) {
            self.folder(above)?;
        }
        self.entry(path, PROGRAM, (0, 0), content)
    }

    /// Adds a folder and those above it, once.
    pub(crate) fn folder(&mut self, path: &str) -> Result<()> {
        let path = path.trim_matches('/');
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for folder in ends.map(|end| path[..end].to_owned()).filter(|folder| !folder.is_empty()).collect::<Vec<_>>() {
            if self.folders.insert(folder.clone()) {
                self.entry(&folder, DIRECTORY, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    /// Adds a device node for a stream of characters.
    pub(crate) fn characters(&mut self, path: &str, device: (u32, u32)) -> Result<()> {
        self.entry(path, CHARACTERS, device, &[])
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) -> Result<()> {
        let path = path.trim_start_matches('/');
        let size = u32::try_from(content.len()).with_context(|| format!("{path} is too large for the format"))?;
        self.entries += 1;
        let name_size = path.len() as u32 + 1;
        // Number, mode, owner, group, links, time, size, device of the file, device of the node, length of the name, check.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend(b"070701");
        self.bytes.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Cpio;

    #[test]
    fn an_archive_has_folders_before_their_files() {
        let mut cpio = Cpio::default();
        cpio.file("/lib/x86/libc.so", b"ELF").unwrap();
        cpio.file("/lib/ld.so", b"").unwrap();
        let bytes = cpio.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let at = |name: &str| text.find(name).unwrap();
        assert!(at("lib\0") < at("lib/x86\0") && at("lib/x86\0") < at("lib/x86/libc.so\0"));
        assert_eq!(text.matches("070701").count(), 5);
        assert!(bytes.len() % 4 == 0 && text.contains("TRAILER!!!\0"));
        // Magic and thirteen numbers: 110 bytes, then the name, together a multiple of four.
        assert_eq!(&bytes[110..114], b"lib\0");
        assert_eq!(&bytes[116..122], b"070701");
    }
}
