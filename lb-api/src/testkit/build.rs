//! How a test builds a balancer.

use std::marker::PhantomData;
use std::sync::Arc;

use super::balancer::TestBalancer;
use super::calls::{Instance, Table};
use super::cluster::{FakeCluster, SettingValue};
use crate::error::BuildError;
use crate::wire;

/// Builds a [`TestBalancer`]: settings, previous instance, saved state.
pub struct Builder<'a, B> {
    cluster: &'a FakeCluster,
    table: Table,
    settings: Vec<(String, u32, SettingValue)>,
    previous: Option<&'a TestBalancer<B>>,
    saved: Option<Vec<u8>>,
    spoils: bool,
}

impl<'a, B> Builder<'a, B> {
    pub(super) fn new(cluster: &'a FakeCluster, table: Table) -> Self {
        Self { cluster, table, settings: Vec::new(), previous: None, saved: None, spoils: false }
    }

    /// One more setting, by its path: `choices`, `tiers[1].name`.
    #[must_use]
    pub fn setting(mut self, path: &str, value: impl Into<SettingValue>) -> Self {
        let mut parent = "";
        for (at, c) in separators(path) {
            let around = &path[..at];
            if !self.settings.iter().any(|(known, ..)| known == around) {
                self.count_element(parent);
                let kind = if c == '[' { wire::SETTING_ARRAY } else { wire::SETTING_TABLE };
                self.settings.push((around.into(), kind, SettingValue::Integer(0)));
            }
            parent = around;
        }
        self.count_element(parent);
        let value = value.into();
        let kind = match value {
            SettingValue::String(_) => wire::SETTING_STRING,
            SettingValue::Integer(_) => wire::SETTING_INTEGER,
            SettingValue::Float(_) => wire::SETTING_FLOAT,
            SettingValue::Boolean(_) => wire::SETTING_BOOLEAN,
            SettingValue::Table(_) => wire::SETTING_TABLE,
            SettingValue::Array(_) => wire::SETTING_ARRAY,
        };
        self.settings.push((path.into(), kind, value));
        self
    }

    /// A table or an array that came into being with an element says how many it has.
    fn count_element(&mut self, parent: &str) {
        if let Some((.., SettingValue::Integer(n))) = self.settings.iter_mut().find(|(at, ..)| at == parent) {
            *n += 1;
        }
    }

    /// The instance that this one replaces.
    #[must_use]
    pub fn previous(mut self, previous: &'a TestBalancer<B>) -> Self {
        self.previous = Some(previous);
        self
    }

    /// State from [`TestBalancer::save`], of this process or an earlier one.
    #[must_use]
    pub fn saved(mut self, saved: Vec<u8>) -> Self {
        self.saved = Some(saved);
        self
    }

    /// Overwrites all texts behind the call that they were lent to, instead of leaving them as they are.
    #[must_use]
    pub fn spoils_texts(mut self) -> Self {
        self.spoils = true;
        self
    }

    /// Calls `build` as a host does.
    ///
    /// # Errors
    /// The balancer's complaints about its settings, or message and place of its panic.
    pub fn build(self) -> Result<TestBalancer<B>, BuildError> {
        self.try_build().map_err(|failure| match failure {
            BuildFailure::Refused(why) => why,
            BuildFailure::Panicked(text) => BuildError::new(text),
        })
    }

    /// The same, with a panic told apart from a refusal.
    pub(super) fn try_build(self) -> Result<TestBalancer<B>, BuildFailure> {
        let previous = self.previous.map(|previous| &previous.instance);
        let instance = Instance::build(
            self.table,
            (self.cluster, &self.settings),
            previous,
            self.saved.as_deref(),
            self.spoils,
        )?;
        Ok(TestBalancer {
            instance,
            n_endpoints: self.cluster.len(),
            world: Arc::clone(&self.cluster.world),
            of: PhantomData,
        })
    }
}

/// Why there is no balancer.
pub(super) enum BuildFailure {
    /// It says what is wrong.
    Refused(BuildError),
    /// Message and place of its panic.
    Panicked(String),
}

/// Where a path goes down into a table or an array: dots and brackets that are not in a quoted key.
fn separators(path: &str) -> impl DoubleEndedIterator<Item = (usize, char)> {
    let (mut quoted, mut escaped) = (false, false);
    let found: Vec<_> = path
        .char_indices()
        .filter(|(_, c)| {
            let is_quote = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            quoted ^= is_quote;
            !quoted && matches!(c, '.' | '[')
        })
        .collect();
    found.into_iter()
}
