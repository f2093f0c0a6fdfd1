//! Names of servers, looked up again and again beside the requests, never on a request's way but for the first time.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

/// How often a name is looked up.
const INTERVAL: Duration = Duration::from_secs(10);
/// How often while there is no address for it.
const RETRY: Duration = Duration::from_secs(1);
/// After this, a look-up counts as failed for those who wait, though its answer is still taken when it comes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where an endpoint is.
#[derive(Debug)]
pub enum Addresses {
    /// It was written as an address.
    Fixed([SocketAddr; 1]),
    /// It was written as a name.
    Named(Arc<Name>),
}

/// A name and what it stands for now.
#[derive(Debug)]
pub struct Name {
    host: Box<str>,
    port: u16,
    answer: ArcSwapOption<Answer>,
    answered: Notify,
}

/// What a look-up brought.
pub type Answer = Result<Vec<SocketAddr>, ResolveError>;

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolveError(Box<str>);

impl Addresses {
    /// Of an address as written.
    pub fn fixed(address: SocketAddr) -> Self {
        Self::Fixed([address])
    }

    /// Of a name, which has no address until [`Name::keep_resolved`] has found one.
    pub fn named(host: &str, port: u16) -> Self {
        Self::Named(Arc::new(Name {
            host: host.into(),
            port,
            answer: ArcSwapOption::empty(),
            answered: Notify::new(),
        }))
    }

    /// The address as far as it is fixed.
    pub fn as_fixed(&self) -> Option<SocketAddr> {
        match self {
            Self::Fixed([address]) => Some(*address),
            Self::Named(_) => None,
        }
    }
}

impl Name {
    /// The latest answer; waits only until there has been one.
    pub async fn addresses(&self) -> Arc<Answer> {
        loop {
            let answered = self.answered.notified();
            if let Some(answer) = self.answer.load_full() {
                return answer;
            }
            answered.await;
        }
    }

    /// Looks the name up for ever. One such task serves all threads. The last good answer is kept when a later look-up
    /// fails: a name server that is down should not take the servers with it.
    pub async fn keep_resolved(self: Arc<Self>) {
        loop {
            let lookup = tokio::net::lookup_host((&*self.host, self.port));
            tokio::pin!(lookup);
            let result = match tokio::time::timeout(PATIENCE, &mut lookup).await {
                Ok(result) => result,
                Err(_) => {
                    self.fail(&format!("no answer within {} s", PATIENCE.as_secs()));
                    lookup.await
                }
            };
            match result.map(Iterator::collect::<Vec<_>>) {
                Ok(addresses) if addresses.is_empty() => self.fail("the name has no address"),
                Ok(addresses) => self.set(Ok(addresses)),
                Err(e) => self.fail(&e.to_string()),
            }
            let good = self.answer.load().as_ref().is_some_and(|answer| answer.is_ok());
            tokio::time::sleep(if good { INTERVAL } else { RETRY }).await;
        }
    }

    fn fail(&self, text: &str) {
        let known = self.answer.load_full();
        let error = ResolveError(text.into());
        match known.as_deref() {
            Some(Ok(_)) => {
                tracing::warn!(name = &*self.host, "look-up failed, keeping the last addresses: {error}");
            }
            Some(Err(old)) if *old == error => {}
            Some(Err(_)) | None => {
                tracing::warn!(name = &*self.host, "look-up failed: {error}");
                self.set(Err(error));
            }
        }
    }

    fn set(&self, answer: Answer) {
        self.answer.store(Some(Arc::new(answer)));
        self.answered.notify_waiters();
    }
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Arc<Name> {
        match Addresses::named("name.invalid", 80) {
            Addresses::Named(name) => name,
            Addresses::Fixed(_) => unreachable!(),
        }
    }

    #[test]
    fn keeps_the_last_good_answer() {
        let name = name();
        name.fail("first");
        assert!(name.answer.load().as_ref().is_some_and(|a| a.is_err()));
        name.set(Ok(vec![([127, 0, 0, 1], 80).into()]));
        name.fail("later");
        assert!(name.answer.load().as_ref().is_some_and(|a| a.is_ok()));
    }

    #[tokio::test]
    async fn wakes_those_who_wait_for_the_first_answer() {
        let name = name();
        let (answer, ()) =
            tokio::join!(name.addresses(), async { name.set(Ok(vec![([127, 0, 0, 1], 80).into()])) });
        assert_eq!(answer.as_ref().as_ref().map(Vec::len), Ok(1));
    }
}
