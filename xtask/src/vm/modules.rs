//! Kernel modules of an unpacked package: which files, in which order. The package has no list of dependencies (depmod
//! makes it at installation); each module names its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The modules and what they depend on, dependencies first. Those that are built into the kernel have no file.
pub(crate) fn closure(modules: &Path, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = BTreeMap::new();
    find(modules, &mut files)?;
    let mut found = Vec::new();
    for name in wanted {
        add(name, &files, &mut found)?;
    }
    Ok(found)
}

fn find(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("no modules in {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            find(&entry.path(), files)?;
        } else if let Some(name) = name.strip_suffix(".ko") {
            // A module's own name has underscores where its file may have hyphens.
            files.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

fn add(name: &str, files: &BTreeMap<String, PathBuf>, found: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let Some(path) = files.get(name).filter(|_| !found.iter().any(|(had, _)| had == name)) else {
        return Ok(());
    };
    let bytes = fs::read(path)?;
    for needed in depends(&bytes) {
        add(&needed, files, found)?;
    }
    found.push((name.to_owned(), bytes));
    Ok(())
}

/// The modules that a module's own information (`depends=a,b` in its section `.modinfo`) names.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else {
        return Vec::new();
    };
    let value: Vec<u8> = module[at + KEY.len()..].iter().take_while(|byte| **byte != 0).copied().collect();
    let names = String::from_utf8_lossy(&value).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first_and_once() {
        let root = std::env::temp_dir().join(format!("tpx-modules-{}", std::process::id()));
        fs::create_dir_all(root.join("net")).unwrap();
        for (file, depends) in [("bridge", "stp,llc"), ("stp", "llc"), ("llc", ""), ("nf-tables", "built_in")] {
            fs::write(root.join(format!("net/{file}.ko")), format!("ELF\0license=GPL\0depends={depends}\0")).unwrap();
        }
        let found = closure(&root, &["bridge", "nf_tables", "llc", "not_there"]);
        fs::remove_dir_all(&root).unwrap();
        let names: Vec<_> = found.unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["llc", "stp", "bridge", "nf_tables"]);
    }
}
