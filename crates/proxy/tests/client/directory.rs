//! A directory that goes with its test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("opentunnel-proxy-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a new directory");
        Self(path)
    }

    pub fn with(files: &[(&str, &str)]) -> Self {
        let directory = Self::new();
        for (name, text) in files {
            directory.write(name, text);
        }
        directory
    }

    /// Writes a file, and gives its path.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(&path, text).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// What a kubelet does for a mounted Secret: a new directory of files, to which `..data` points from one moment to
    /// the next; then the old one goes.
    #[cfg(unix)]
    pub fn mount(&self, version: &str, files: &[(&str, &str)]) {
        use std::os::unix::fs::symlink;
        let old = fs::read_link(self.0.join("..data")).ok();
        for (name, text) in files {
            self.write(&format!("..{version}/{name}"), text);
            let link = self.0.join(name);
            if fs::symlink_metadata(&link).is_err() {
                symlink(format!("..data/{name}"), link).expect("a link");
            }
        }
        let link = self.0.join("..data_tmp");
        symlink(format!("..{version}"), &link).expect("a link");
        fs::rename(link, self.0.join("..data")).expect("in one step");
        if let Some(old) = old {
            fs::remove_dir_all(self.0.join(old)).expect("the old version");
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn text(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
