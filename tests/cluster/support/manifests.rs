//! The manifests in `tests/manifests`.

use super::control_plane::repository;
use std::fs;

/// A manifest of `tests/manifests`, in which `<<TEXT*N>>` stands for N times TEXT, with `#` for the
/// number in three digits. TEXT may hold another such place.
pub fn manifest(file: &str) -> String {
    let path = repository().join("tests/manifests").join(file);
    let mut text = fs::read_to_string(&path).expect("there is such a manifest");
    // The last place to begin holds no other.
    while let Some(start) = text.rfind("<<") {
        let end = start + text[start..].find(">>").expect("<< has its >>");
        let (what, times) = text[start + 2..end].rsplit_once('*').expect("TEXT*N");
        let times: usize = times.parse().expect("a number");
        let numbered = (1..=times).map(|n| what.replace('#', &format!("{n:03}")));
        let expanded: String = numbered.collect();
        text.replace_range(start..end + 2, &expanded);
    }
    text
}
