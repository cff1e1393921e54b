//! The emulator's background tasks, which end with it.

use std::sync::{Mutex, PoisonError};

use tokio::task::JoinSet;

/// `None` once stopped: nothing is spawned any more.
#[derive(Debug)]
pub(crate) struct Tasks(Mutex<Option<JoinSet<()>>>);

impl Default for Tasks {
    fn default() -> Self {
        Self(Mutex::new(Some(JoinSet::new())))
    }
}

impl Tasks {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }

    /// Aborts all tasks; the result is for who wants to wait until they are gone.
    pub(crate) fn abort(&self) -> Option<JoinSet<()>> {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        tasks.abort_all();
        Some(tasks)
    }
}
