//! One request over a connection of hyper, for those who ask seldom: health checks and sources of servers.

use std::pin::pin;

/// Runs a connection in this task until its answer is here. When this is dropped, so is the connection.
///
/// # Errors
/// That of the answer, or of the connection where it ends without one.
pub(crate) async fn drive<T, E>(
    connection: impl Future<Output = hyper::Result<()>>,
    answered: impl Future<Output = Result<T, E>>,
    failed: impl FnOnce(hyper::Error) -> E,
) -> Result<T, E> {
    let mut answered = pin!(answered);
    tokio::select! {
        biased;
        answer = &mut answered => answer,
        ended = connection => {
            // Its end may have brought the answer.
            let answer = answered.await;
            ended.map_err(failed)?;
            answer
        }
    }
}
