//! Directories that go with their test, and the token Secret as a kubelet mounts it.

#[path = "../../client/directory.rs"]
mod shared;

pub use shared::Directory;
