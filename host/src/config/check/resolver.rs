//! `[resolver]`.

use super::super::source::At;
use super::super::units::show_time;
use super::super::{Families, ResolverConfig, file};
use super::{Checker, address};

impl Checker<'_> {
    pub(super) fn resolver(&mut self, raw: file::ResolverTable) -> ResolverConfig {
        let defaults = ResolverConfig::default();
        let mut servers = Vec::new();
        for text in raw.servers.into_iter().flatten() {
            match address::parse_name_server(text.get_ref()) {
                Ok(server) => servers.push(server),
                Err(reason) => {
                    self.report.error(text.at(), format!("resolver.servers: \"{text}\" {reason}"));
                }
            }
        }
        let families = [("any", Families::Any), ("ipv4", Families::Ipv4), ("ipv6", Families::Ipv6)];
        let family = raw.family.and_then(|text| self.word("resolver.family", &text, &families));
        let resolver = ResolverConfig {
            servers,
            family: family.unwrap_or(defaults.family),
            timeout: self.time("resolver.timeout", raw.timeout.as_ref(), defaults.timeout),
            min_ttl: self.time("resolver.min_ttl", raw.min_ttl.as_ref(), defaults.min_ttl),
            max_ttl: self.time("resolver.max_ttl", raw.max_ttl.as_ref(), defaults.max_ttl),
        };
        if resolver.max_ttl < resolver.min_ttl {
            let at = raw.max_ttl.or(raw.min_ttl).map_or(0, |time| time.at());
            let (max, min) = (show_time(resolver.max_ttl), show_time(resolver.min_ttl));
            let text = format!("resolver.max_ttl: {max} is less than the {min} of resolver.min_ttl");
            self.report.error(at, text);
        }
        resolver
    }
}
