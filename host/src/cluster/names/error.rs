//! Why a name has no address.

use std::fmt;

use hickory_resolver::net::{DnsError, NetError};

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResolveError(Box<str>);

impl ResolveError {
    pub(super) fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string().into())
    }

    pub(super) fn no_answer() -> Self {
        Self("no name server answers".into())
    }

    pub(super) fn no_such_name() -> Self {
        Self("there is no such name".into())
    }

    pub(super) fn no_address() -> Self {
        Self("the name has no address".into())
    }
}

impl From<&NetError> for ResolveError {
    fn from(e: &NetError) -> Self {
        match e {
            NetError::Timeout => Self::no_answer(),
            NetError::Dns(DnsError::ResponseCode(code)) => {
                Self(format!("the name server answers {code:?}").into())
            }
            e => Self(e.to_string().replace('\n', " ").into()),
        }
    }
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
