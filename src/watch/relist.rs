//! What a watch that failed goes on with.

use futures::{Stream, StreamExt, stream};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::DefaultBackoff;
use std::time::Duration;

/// kube's pauses after failures, 0.8 s to 30 s, begun anew after two minutes without one. They are not begun anew by an
/// event: where lists succeed and watches fail, each failure has a list before it, and all would be read every second.
#[derive(Default)]
pub struct Pauses(DefaultBackoff);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {}
}

/// A watch that begins anew, with a list, whenever it has failed. kube's own goes on from the resourceVersion
/// where it was, which is not always good:
/// - where an HTTP status says that the history is gone (410; an API server says it by an event), it asks for
///   the same again, for ever;
/// - where etcd was restored from an older state, the resourceVersion is one of the future: it sees nothing, and
///   is told so by nobody, until as much was written again. The API server was away then, so the watch has
///   failed.
///
/// `begin` makes a watch ([`kube::runtime::watcher()`]). Pausing after a failure is the caller's.
pub fn relisting<S, T, E>(begin: impl Fn() -> S) -> impl Stream<Item = Result<T, E>>
where
    S: Stream<Item = Result<T, E>>,
{
    stream::unfold((begin, None), async |(begin, watch)| {
        let mut watch = watch.unwrap_or_else(|| Box::pin(begin()));
        let event = watch.next().await?;
        let watch = event.is_ok().then_some(watch);
        Some((event, (begin, watch)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::runtime::WatchStreamExt;

    #[tokio::test(start_paused = true)]
    async fn where_lists_succeed_and_watches_fail_the_pauses_grow() {
        let begun = tokio::time::Instant::now();
        let events = relisting(|| stream::iter([Ok("list"), Err("no watch")])).backoff(Pauses::default());
        let failures = events.filter(|event| std::future::ready(event.is_err())).take(6).count().await;
        // 0.8 s, doubled five times, with jitter upwards; the last failure is told before its pause.
        assert_eq!(failures, 6);
        assert!(begun.elapsed() >= Duration::from_millis(800 * (1 + 2 + 4 + 8 + 16)), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_watch_that_failed_begins_anew() {
        let events = relisting(|| stream::iter([Ok("list"), Ok("event"), Err("gone"), Ok("lost")]));
        let events: Vec<_> = events.take(6).collect().await;
        assert_eq!(events, [Ok("list"), Ok("event"), Err("gone"), Ok("list"), Ok("event"), Err("gone")]);
    }
}
