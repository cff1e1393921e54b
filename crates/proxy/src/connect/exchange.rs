//! One HTTP request and its answer, on a connection that is something else afterwards.

use super::Connection;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::error::Error as _;
use tokio::task::JoinSet;

/// Bytes of an answer's body that are read: it is a sentence.
const MAX_TEXT: usize = 4096;

/// Why there is no answer that can be understood.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The request cannot be written.
    #[error("the request cannot be written: {0}")]
    Request(String),
    /// The answer is no HTTP, or not whole.
    #[error("there is no whole HTTP answer: {0}")]
    Answer(String),
}

impl From<hyper::Error> for ExchangeError {
    fn from(error: hyper::Error) -> Self {
        let mut text = error.to_string();
        if let Some(source) = error.source() {
            text = format!("{text}: {source}");
        }
        Self::Answer(text)
    }
}

/// An answer, and the connection that it came on.
pub(super) struct Answer {
    response: Response<Incoming>,
    /// What reads and writes; it ends with this answer.
    connection: JoinSet<()>,
}

/// Sends a request and waits for the answer's head.
pub(super) async fn send(
    connection: Box<dyn Connection>,
    request: Request<Empty<Bytes>>,
) -> Result<Answer, ExchangeError> {
    let (mut sender, driver) = http1::handshake(TokioIo::new(connection)).await?;
    let mut connection = JoinSet::new();
    connection.spawn(async move {
        // What is wrong is told to the sender, too.
        let _ = driver.with_upgrades().await;
    });
    let response = sender.send_request(request).await?;
    Ok(Answer { response, connection })
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The beginning of the body; what cannot be read of it is left out.
    pub(super) async fn text(self) -> String {
        let mut body = self.response.into_body();
        let mut text = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            let room = MAX_TEXT - text.len();
            text.extend_from_slice(&data[..data.len().min(room)]);
            if text.len() == MAX_TEXT {
                break;
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The connection, for what the answer has let through.
    pub(super) async fn upgrade(mut self) -> Result<Box<dyn Connection>, ExchangeError> {
        let upgraded = hyper::upgrade::on(self.response).await?;
        // What has handed the connection over ends by itself: it must not be stopped before.
        while self.connection.join_next().await.is_some() {}
        Ok(Box::new(TokioIo::new(upgraded)))
    }
}
