//! A local folder as a backup target: one file per object.
//!
//! - F1 A file appears under its name only after its bytes are durable: it is written and synced in `.partial`,
//!   then renamed. So T1 holds after a crash too, whatever the file system does about names.
//! - F2 The next sync knows every directory whose entries may not be durable: those that this handle has changed,
//!   and those that it has only read, for another process may have been killed between its rename and its sync.
//! - F3 After a sync has failed the handle refuses to put and to sync: what the host then shows need not be what
//!   the medium has. A new handle starts over.
//! - F4 A file in `.partial` is locked by whoever writes it; one that can be locked belongs to nobody.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::{BackupTarget, Listed, is_name};

const PARTIAL: &str = ".partial";
/// Objects in one page of a listing, more or less.
const PAGE: usize = 4096;
/// Directories below the root that a name may have.
const MAX_DEPTH: usize = 8;

/// A folder of a local file system that keeps backups: see [`BackupTarget`].
///
/// Several handles, pools and processes may use one folder at a time. The files in it are named as the objects
/// are; nothing else should be put there.
#[derive(Debug)]
pub struct LocalFolder {
    root: PathBuf,
    names: Mutex<Names>,
}

#[derive(Debug, Default)]
struct Names {
    /// Directories with entries that may not be durable.
    unsynced: BTreeSet<PathBuf>,
    failed: bool,
}

impl LocalFolder {
    /// Uses the folder at `path`, making it and those above it when they are not there. Removes what interrupted
    /// calls have left in it.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let root = path.as_ref().to_path_buf();
        let folder = Self { root, names: Mutex::default() };
        fs::create_dir_all(folder.root.join(PARTIAL))?;
        let root = fs::canonicalize(&folder.root)?;
        let folder = Self { root, ..folder };
        for entry in fs::read_dir(folder.root.join(PARTIAL))? {
            let path = entry?.path();
            // Whoever still writes it holds the lock (F4); a file that went meanwhile is nobody's.
            if let Ok(file) = File::open(&path)
                && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                let _ = fs::remove_file(&path);
            }
        }
        // The folder's own name, and that of the folder above it, which may be as new.
        let mut names = folder.names.lock();
        names.unsynced.extend(folder.root.ancestors().skip(1).take(2).map(Path::to_path_buf));
        names.unsynced.insert(folder.root.clone());
        drop(names);
        Ok(folder)
    }

    fn path_of(&self, name: &str) -> io::Result<PathBuf> {
        if is_name(name) && name.split('/').count() <= MAX_DEPTH {
            Ok(self.root.join(name))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name of an object")))
        }
    }

    /// A fresh file that nobody else cleans away (F4).
    fn partial(&self) -> io::Result<(PathBuf, File)> {
        loop {
            let path = self.root.join(PARTIAL).join(Uuid::new_v4().to_string());
            let file = File::create_new(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            // Somebody may have found it before it was locked.
            if file.metadata()?.nlink() == 1 {
                return Ok((path, file));
            }
        }
    }

    fn fill(&self, partial: &Path, mut file: File, bytes: &[u8], path: &Path) -> io::Result<()> {
        file.write_all(bytes)?;
        file.sync_all()?;
        let dir = path.parent().unwrap_or(&self.root);
        if !dir.is_dir() {
            self.make_dirs(dir)?;
        }
        self.names.lock().unsynced.insert(dir.to_path_buf());
        fs::rename(partial, path)
    }

    fn make_dirs(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        let above = dir.ancestors().skip(1).take_while(|d| d.starts_with(&self.root));
        self.names.lock().unsynced.extend(above.map(Path::to_path_buf));
        Ok(())
    }

    fn usable(&self) -> io::Result<()> {
        if self.names.lock().failed {
            return Err(io::Error::other("an earlier sync of this folder failed; open it again"));
        }
        Ok(())
    }

    /// Adds what lies in `dir`, whose objects' names begin with `base`; false once the page is full.
    fn walk(&self, dir: &Path, base: &str, search: &mut Search<'_>, depth: usize) -> io::Result<bool> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(true);
            }
            Err(e) => return Err(e),
        };
        self.names.lock().unsynced.insert(dir.to_path_buf());
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let file_name = entry.file_name();
            // What no object can be called is none of ours: `.partial`, for one.
            let Some(part) = std::str::from_utf8(file_name.as_bytes()).ok().filter(|n| is_name(n)) else {
                continue;
            };
            let is_dir = entry.file_type()?.is_dir();
            let slash = if is_dir { "/" } else { "" };
            found.push((format!("{base}{part}{slash}"), is_dir, entry.path()));
        }
        found.sort();
        for (name, is_dir, path) in found {
            if !search.may_hold(&name) {
                continue;
            }
            if is_dir {
                if depth < MAX_DEPTH && !self.walk(&path, &name, search, depth + 1)? {
                    return Ok(false);
                }
                continue;
            }
            match fs::metadata(&path) {
                Ok(m) => search.found.push(Listed { name, len: m.len() }),
                // Deleted since the directory was read.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            }
            if search.found.len() >= PAGE {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

struct Search<'a> {
    prefix: &'a str,
    after: &'a str,
    found: Vec<Listed>,
}

impl Search<'_> {
    /// Whether an object of this name, or below this directory (its name ends in `/`), is looked for.
    fn may_hold(&self, name: &str) -> bool {
        if name.ends_with('/') {
            let meets = name.starts_with(self.prefix) || self.prefix.starts_with(name);
            meets && (name > self.after || self.after.starts_with(name))
        } else {
            name.starts_with(self.prefix) && (self.after.is_empty() || name > self.after)
        }
    }
}

impl BackupTarget for LocalFolder {
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.usable()?;
        let path = self.path_of(name)?;
        let (partial, file) = self.partial()?;
        let put = self.fill(&partial, file, bytes, &path);
        if put.is_err() {
            // The first error says more than one about the removal.
            let _ = fs::remove_file(&partial);
        }
        put
    }

    fn get(&self, name: &str, most_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        let path = self.path_of(name)?;
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        self.names.lock().unsynced.extend(path.parent().map(Path::to_path_buf));
        let mut bytes = Vec::new();
        // Memory grows with what arrives, not with what somebody says will.
        file.take(most_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most_bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {most_bytes} bytes")));
        }
        Ok(Some(bytes))
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> io::Result<Vec<Listed>> {
        let mut search = Search { prefix, after: after.unwrap_or(""), found: Vec::new() };
        self.walk(&self.root, "", &mut search, 1)?;
        Ok(search.found)
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        let path = self.path_of(name)?;
        if let Some(dir) = path.parent() {
            self.names.lock().unsynced.insert(dir.to_path_buf());
        }
        match fs::remove_file(&path) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Err(e),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.usable()?;
        let dirs = std::mem::take(&mut self.names.lock().unsynced);
        for dir in &dirs {
            let synced = match File::open(dir) {
                // Whoever removed it, there is nothing in it to keep.
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                // A folder above ours need not be ours to read.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !dir.starts_with(&self.root) => {
                    Ok(())
                }
                opened => opened.and_then(|d| d.sync_all()),
            };
            if let Err(e) = synced {
                let mut names = self.names.lock();
                names.failed = true;
                names.unsynced.extend(dirs);
                return Err(e);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &LocalFolder, prefix: &str, after: Option<&str>) -> Vec<String> {
        folder.list(prefix, after).unwrap().into_iter().map(|l| l.name).collect()
    }

    #[test]
    fn objects_are_put_got_listed_and_deleted_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = LocalFolder::open(dir.path().join("a/b")).unwrap();
        assert_eq!(folder.get("x/y", 10).unwrap(), None);
        folder.put("x/y", b"one").unwrap();
        folder.put("x/y", b"second").unwrap();
        assert_eq!(folder.get("x/y", 6).unwrap().unwrap(), b"second");
        assert_eq!(folder.get("x/y", 5).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(folder.get("x/y/z", 5).unwrap(), None);
        assert_eq!(folder.list("", None).unwrap(), [Listed { name: "x/y".into(), len: 6 }]);
        folder.sync().unwrap();
        folder.delete("x/y").unwrap();
        folder.delete("x/y").unwrap();
        assert!(folder.list("", None).unwrap().is_empty());
        for bad in ["../x", "x/../y", "", ".partial/x", "a/b/c/d/e/f/g/h/i"] {
            assert_eq!(folder.put(bad, b"").unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad}");
        }
        assert_eq!(fs::read_dir(dir.path().join("a/b/.partial")).unwrap().count(), 0);
    }

    #[test]
    fn listings_are_in_the_order_of_names_and_go_on_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let folder = LocalFolder::open(dir.path()).unwrap();
        // `-` sorts before `/`, which sorts before digits: a walk by parts would get this wrong.
        let mut all = ["ab-c", "ab/x", "ab0", "ab/x1/z", "a", "b/0/1", "b/0-1", "b/1"].map(String::from);
        for name in &all {
            folder.put(name, name.as_bytes()).unwrap();
        }
        fs::write(dir.path().join("Not an object"), b"").unwrap();
        all.sort();
        assert_eq!(names(&folder, "", None), all);
        for (i, after) in all.iter().enumerate() {
            assert_eq!(names(&folder, "", Some(after)), all[i + 1..], "after {after}");
        }
        assert_eq!(names(&folder, "ab", None), ["ab-c", "ab/x", "ab/x1/z", "ab0"]);
        assert_eq!(names(&folder, "ab/", None), ["ab/x", "ab/x1/z"]);
        assert_eq!(names(&folder, "b/0", Some("b/0-1")), ["b/0/1"]);
        assert_eq!(names(&folder, "b/0", Some("c")), Vec::<String>::new());
        assert_eq!(names(&folder, "c/", None), Vec::<String>::new());
    }

    #[test]
    fn leftovers_go_unless_somebody_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let folder = LocalFolder::open(dir.path()).unwrap();
        let (busy, _file) = folder.partial().unwrap();
        let left = dir.path().join(".partial/left");
        fs::write(&left, b"half").unwrap();
        let _again = LocalFolder::open(dir.path()).unwrap();
        assert!(busy.exists() && !left.exists());
    }

    #[test]
    fn directories_that_were_only_read_are_synced_too() {
        let dir = tempfile::tempdir().unwrap();
        LocalFolder::open(dir.path()).unwrap().put("p/q/r", b"").unwrap();
        let folder = LocalFolder::open(dir.path()).unwrap();
        folder.list("p/", None).unwrap();
        let waiting = |f: &LocalFolder| f.names.lock().unsynced.contains(&f.root.join("p/q"));
        assert!(waiting(&folder));
        folder.sync().unwrap();
        assert!(!waiting(&folder));
        folder.get("p/q/r", 0).unwrap();
        assert!(waiting(&folder));
    }
}
