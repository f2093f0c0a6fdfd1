//! `trylist check`: everything that `run` would refuse, without listening anywhere.

use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use trylist::cluster::learned::Learned;
use trylist::config::{Config, Files, Warning};
use trylist::module::load;
use trylist::module::registry::Registry;
use trylist::process::control::{Exit, Refused};
use trylist::process::preflight::{self, Lacks};
use trylist::process::privileges;
use trylist::worker::{Prepared, StartError};

use crate::output::{CommandFailure, count, lines, print};

pub(crate) fn run(file: &Path) -> Result<(), CommandFailure> {
    let (config, warnings) = preflight::load(file, &mut Files::on_disk())?;
    let config = Arc::new(config);
    let lacks = Lacks::of(&config);
    let prepared = match (prepare(&config), lacks.errors.is_empty()) {
        (Ok(prepared), true) => prepared,
        (Ok(_), false) => return Err(CommandFailure { exit: Exit::Failed, text: lines(&lacks.errors) }),
        (Err(refused), _) => {
            // The two may name the same account.
            let lacks = lacks.errors.iter().filter(|lack| !refused.lines.contains(lack));
            return Err(CommandFailure {
                exit: refused.exit,
                text: lines(refused.lines.iter().chain(lacks)),
            });
        }
    };
    let warnings = warnings.iter().map(Warning::to_string).chain(prepared.warnings).chain(lacks.warnings);
    let warnings: String = warnings.map(|warning| format!("{warning} (warning)\n")).collect();
    // Not by the log, whose level may hide them: they are what was asked for.
    io::stderr()
        .write_all(warnings.as_bytes())
        .map_err(|error| CommandFailure::new(format_args!("stderr: {error}")))?;
    print(&summary(&config))
}

/// Loads the modules and builds the balancers as a worker does: the files are read by the user that started this command, and
/// code of modules runs as the user of the configuration. This process stays that user.
fn prepare(config: &Arc<Config>) -> Result<Prepared, Refused> {
    let copies: Vec<_> = config.modules.iter().map(load::read).collect();
    if let Err(text) = privileges::drop_to(&config.run_as) {
        let mut lines: Vec<_> =
            copies.iter().filter_map(|copy| Some(copy.as_ref().err()?.to_string())).collect();
        let exit = if lines.is_empty() { Exit::Failed } else { Exit::Module };
        lines.push(text);
        return Err(Refused { exit, lines });
    }
    let copies = copies.into_iter().map(|copy| copy.map(Some));
    let registry = Registry::open(&config.modules, copies).map_err(StartError::Modules)?;
    Ok(Prepared::over(Arc::clone(config), registry, &Learned::new())?)
}

/// The line of a successful check.
fn summary(config: &Config) -> String {
    let n_servers = config.clusters.iter().map(|cluster| cluster.servers.len()).sum();
    format!(
        "{}: ok: {}, {}, {} of {}, {}\n",
        config.source.display(),
        count(config.listeners.len(), "listener"),
        count(config.modules.len(), "module"),
        count(config.clusters.len(), "cluster"),
        count(n_servers, "server"),
        count(config.routes.len(), "route"),
    )
}
