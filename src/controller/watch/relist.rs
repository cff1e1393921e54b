//! What a watch that failed goes on with.

use futures::{Stream, StreamExt, stream};

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

    #[tokio::test]
    async fn a_watch_that_failed_begins_anew() {
        let events = relisting(|| stream::iter([Ok("list"), Ok("event"), Err("gone"), Ok("lost")]));
        let events: Vec<_> = events.take(6).collect().await;
        assert_eq!(events, [Ok("list"), Ok("event"), Err("gone"), Ok("list"), Ok("event"), Err("gone")]);
    }
}
