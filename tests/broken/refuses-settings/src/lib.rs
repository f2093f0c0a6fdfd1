//! A module that is never pleased with its settings, and says so twice.

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};

struct RefusesSettings;

#[derive(lb_api::serde::Deserialize)]
#[serde(crate = "lb_api::serde")]
struct Settings {
    choices: u32,
}

impl Balancer for RefusesSettings {
    const ID: &'static str = "refuses_settings";
    const SUMMARY: &'static str = "is never pleased with its settings";
    type Settings = Settings;
    type Trylist = ();

    fn build(_: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        let choices = settings.choices;
        Err(BuildError::setting("choices", format!("{choices} is not what it wants"))
            .and(BuildError::new("nothing is")))
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), _: &NextCx<'_>) -> Next {
        Next::Exhausted
    }
}

lb_api::export_balancer!(RefusesSettings);
