//! The log of the supervisor and its processes: opened here, because they may not be allowed to.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use super::Supervisor;
use crate::config::Config;
use crate::observe::access_log;
use crate::os::log::{self, LogSettings};
use crate::process::channel::message::ToWorker;
use crate::process::control::Refused;

/// As the configuration that serves wants it.
pub(super) struct OwnLog {
    settings: LogSettings,
    /// The level of the command line, which wins.
    given_level: Option<String>,
    file: Option<File>,
}

impl OwnLog {
    /// Has this process log so.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(super) fn begin(settings: &LogSettings, given_level: Option<&str>) -> Result<Self, Refused> {
        let mut begun = Self {
            settings: LogSettings::default(),
            given_level: given_level.map(str::to_owned),
            file: None,
        };
        begun.change(settings).map_err(Refused::failed)?;
        Ok(begun)
    }

    /// Has this process log as another configuration says. If that fails, everything stays as it is.
    pub(super) fn change(&mut self, settings: &LogSettings) -> Result<(), String> {
        if self.settings == *settings {
            return Ok(());
        }
        let cannot = |error| format!("log: {error}; it stays as it is");
        let file = settings.file().map(open).transpose()?;
        let own = file.as_ref().map(File::try_clone).transpose().map_err(cannot)?;
        log::apply(settings, own).map_err(cannot)?;
        (self.settings, self.file) = (settings.clone(), file);
        // It was checked with the rest of the configuration.
        if let Ok(levels) = self.level_of(settings).parse() {
            log::set_levels(&levels);
        }
        Ok(())
    }

    /// The level of a process of this configuration.
    pub(super) fn level_of<'a>(&'a self, settings: &'a LogSettings) -> &'a str {
        self.given_level.as_deref().unwrap_or(&settings.level)
    }

    /// The file for another process of this configuration: opened anew, or the one that is open, if the disk has no room for another
    /// one, say.
    pub(super) fn file_for(&self, settings: &LogSettings) -> Result<Option<File>, Refused> {
        let Some(path) = settings.file() else { return Ok(None) };
        let opened = open(path).or_else(|error| match &self.file {
            Some(file) if self.settings.file() == Some(path) => file.try_clone().map_err(|_| error),
            _ => Err(error),
        });
        opened.map(Some).map_err(Refused::failed)
    }

    /// Opens the file again, after a rotation; none if there is no file.
    fn reopen(&mut self) -> Option<Result<(), String>> {
        let path = self.settings.file()?;
        let reopened = open(path).and_then(|file| {
            let own = file.try_clone().map_err(|error: io::Error| error.to_string())?;
            log::reopen_with(own, path);
            Ok(file)
        });
        Some(reopened.map(|file| self.file = Some(file)))
    }
}

fn open(path: &Path) -> Result<File, String> {
    access_log::append_to(path).map_err(|error| format!("log \"{}\": {error}", path.display()))
}

impl Supervisor {
    /// Has this process log as the configuration says that serves now.
    pub(super) fn log_as_configured(&mut self, config: &Config) {
        if let Err(text) = self.own_log.change(&config.log) {
            tracing::error!("{text}");
        }
    }

    /// Opens the log's file again, for this process and the others; the number of files, and what went wrong.
    pub(super) fn reopen_own_log(&mut self) -> (usize, Vec<String>) {
        let (mut n_opened, mut wrong) = (0, Vec::new());
        match self.own_log.reopen() {
            Some(Ok(())) => n_opened += 1,
            Some(Err(text)) => wrong.push(format!("{text}; the old file stays in use")),
            None => {}
        }
        for generation in &mut self.generations {
            let Some(path) = generation.bundle.config.log.file() else { continue };
            match open(path) {
                Ok(file) => {
                    n_opened += 1;
                    generation.tell(ToWorker::ReopenOwnLog, &[File::as_fd(&file)]);
                }
                Err(text) => wrong.push(format!("{text}; the old file stays in use")),
            }
        }
        if let Some(Ok(file)) = self.scouting.log_path().map(open) {
            self.scouting.reopen_log(file);
        }
        wrong.dedup();
        (n_opened, wrong)
    }
}
