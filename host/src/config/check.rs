//! Checks the raw form as a whole: reports every problem, and returns the configuration.
//!
//! A failed check reports its problem and continues with the default, so that one run finds all problems. A key that could
//! not be read (see [`super::read`]) is not reported as missing too.

mod address;
mod answer;
mod cluster;
mod discover;
mod forwarded;
mod headers;
mod health;
mod key;
mod limits;
mod listener;
mod module;
mod process;
mod reach;
mod resolver;
mod retry;
mod route;
mod server;
mod sticky;
mod tls;
mod values;

use std::path::Path;

pub(crate) use self::discover::canonical_url;
use self::route::RouteTerms;

use super::file::RootTable;
use super::source::{Diagnostics, Span};
use super::{AccessLogTarget, Config, ErrorPages, Files, RouteOrder, RunAs, Syntax};

/// The state that all checks share. Its methods are in the files of `check/`, one for each part of a configuration.
pub(super) struct Checker<'a> {
    pub(super) report: &'a mut Diagnostics,
    /// Certificates and keys are read through this.
    pub(super) files: &'a mut Files,
    /// The syntax in which messages show examples.
    pub(super) syntax: Syntax,
    /// The span of the whole configuration, as [`Diagnostics`] marks it.
    pub(super) root: Span,
    /// The configuration file; relative paths start in its directory.
    pub(super) source: &'a Path,
}

impl Checker<'_> {
    /// Checks everything. The result is meaningless if the report has errors afterwards.
    pub(super) fn check(&mut self, file: RootTable) -> Config {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.integer("threads", file.threads.as_ref(), 1..=1024, threads);
        let listeners = self.listeners(file.listener.0);
        let modules = self.modules(file.load_module, file.module_path, file.module_files);
        let clusters = self.clusters(file.cluster.0, &modules);
        self.warn_of_unused(&modules.checked, &clusters.checked);
        let request_id = file.request_id.and_then(|name| self.request_id(&name));
        let mut errors = ErrorPages::default();
        if let Some(pages) = file.errors {
            self.errors("errors.", pages, &mut errors);
        }
        let terms = RouteTerms {
            listeners: &listeners,
            clusters: &clusters,
            request_id: request_id.as_deref(),
            errors: &errors,
        };
        let routes = self.routes(file.route.0, terms);
        if self.report.n_errors() == 0 {
            self.warn_of_idle_clusters(&clusters.checked, &routes);
            self.warn_of_loops(&clusters.checked, &listeners);
        }
        let admin = file.admin.and_then(|admin| self.admin(admin, &listeners, &clusters));
        Config {
            source: self.source.to_owned(),
            threads,
            listeners,
            modules: modules.checked,
            clusters: clusters.checked,
            routes,
            route_order: match self.syntax {
                Syntax::Toml => RouteOrder::Longest,
                Syntax::Httpd => RouteOrder::First,
            },
            errors,
            request_id,
            forwarded: self.forwarded(file.forwarded.unwrap_or_default()),
            limits: self.limits(file.limits.unwrap_or_default()),
            timeouts: self.timeouts(file.timeouts.unwrap_or_default()),
            run_as: RunAs { user: self.account("user", file.user), group: self.account("group", file.group) },
            control: self.control(file.control),
            state: file.state.and_then(|path| self.file_name("state", &path)),
            pid_file: file.pid_file.and_then(|path| self.file_name("pid_file", &path)),
            pass_environment: self.variables(file.pass_environment.unwrap_or_default()),
            core_dumps: file.core_dumps.unwrap_or(false),
            supervision: self.supervision(file.supervision.unwrap_or_default()),
            resolver: self.resolver(file.resolver.unwrap_or_default()),
            access_log_format: self.log_format(file.access_log.as_ref()).into(),
            log: self.log(file.log.unwrap_or_default(), file.access_log.as_ref()),
            access_log: file.access_log.map_or(AccessLogTarget::Off, |log| self.access_log(log)),
            admin,
            explain_to: self.networks("explain.allow", &file.explain.unwrap_or_default().allow),
        }
    }
}
