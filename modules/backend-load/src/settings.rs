//! The module's settings.

use std::time::Duration;

use lb_api::serde::Deserialize;
use lb_api::serde::de::{self, Deserializer};
use lb_api::{BuildError, Time};

use crate::learned::Periods;

/// The module's settings.
#[derive(Debug, Deserialize)]
#[serde(crate = "lb_api::serde", default)]
pub struct Settings {
    #[serde(deserialize_with = "duration")]
    pub(crate) blackout: Duration,
    #[serde(deserialize_with = "duration")]
    pub(crate) expiry: Duration,
    #[serde(deserialize_with = "period")]
    pub(crate) update: Duration,
    #[serde(deserialize_with = "penalty")]
    pub(crate) error_penalty: f64,
    #[serde(deserialize_with = "names")]
    pub(crate) metrics: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            blackout: Duration::from_secs(10),
            expiry: Duration::from_secs(180),
            update: Duration::from_secs(1),
            error_penalty: 1.0,
            metrics: Vec::new(),
        }
    }
}

impl Settings {
    /// Checks settings against each other.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        if self.expiry >= self.update {
            return Ok(());
        }
        let (expiry, update) = (self.expiry, self.update);
        let text = format!("{expiry:?} is less than update ({update:?}), so that reports would never count");
        Err(BuildError::setting("expiry", text))
    }

    pub(crate) fn periods(&self) -> Periods {
        let ns = |duration: Duration| duration.as_nanos() as u64;
        Periods { blackout_ns: ns(self.blackout), expiry_ns: ns(self.expiry) }
    }
}

/// Longer is a mistake of unit rather than a wish.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Envoy's limit: more often would be work for nothing.
const SHORTEST_UPDATE: Duration = Duration::from_millis(100);

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let time = Time::deserialize(deserializer)?;
    if time.0 > LONGEST {
        return Err(de::Error::custom(format_args!("expected \"24h\" or less, found \"{time}\"")));
    }
    Ok(time.0)
}

fn period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let period = duration(deserializer)?;
    if period < SHORTEST_UPDATE {
        return Err(de::Error::custom(format_args!("expected \"100ms\" or more, found {period:?}")));
    }
    Ok(period)
}

/// Named metrics, with or without what Envoy's configuration and the reports themselves write before their names.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let written: Vec<String> = Deserialize::deserialize(deserializer)?;
    let name = |text: String| match text.strip_prefix("named_metrics.").unwrap_or(&text) {
        "" => Err(de::Error::custom("expected the name of a metric, found \"\"")),
        "application_utilization" | "cpu_utilization" | "mem_utilization" => {
            Err(de::Error::custom(format_args!("expected the name of a named metric, which {text:?} is not")))
        }
        name => Ok(name.to_owned()),
    };
    written.into_iter().map(name).collect()
}

fn penalty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let penalty: f64 = Deserialize::deserialize(deserializer)?;
    if !penalty.is_finite() || penalty < 0.0 {
        return Err(de::Error::custom(format_args!("expected 0 or more, found {penalty}")));
    }
    Ok(penalty)
}
