//! Keys of the process: accounts, files, environment, `[supervision]`, `[access_log]` and `[log]`.

use std::path::PathBuf;

use toml::Spanned;

use super::super::shape::{Short, Switched};
use super::super::source::At;
use super::super::{Access, AccessLogTarget, ControlSocket, LogFormat, Place, RunAs, Supervision, file};
use super::Checker;
use super::address::LONGEST_SOCKET_PATH;
use crate::os::log::{LineForm, LogLevels, LogSettings, LogTarget};

impl Checker<'_> {
    /// A user or group. Its existence is checked at start, because another machine may run the configuration.
    pub(super) fn account(&mut self, key: &str, name: Option<Spanned<String>>) -> Option<(Box<str>, Place)> {
        let name = name?;
        if name.get_ref().is_empty() {
            self.report.error(name.at(), format!("{key}: is empty; write a name, or leave it out"));
            return None;
        }
        let place = self.report.place(name.at());
        Some((name.into_inner().into(), place))
    }

    pub(super) fn control(
        &mut self,
        control: Option<Spanned<Switched<file::ControlTable>>>,
    ) -> ControlSocket {
        let Some(control) = control else { return ControlSocket::Derived };
        let span = control.span();
        let table = match control.into_inner() {
            Switched::Off => return ControlSocket::Off,
            Switched::On(Short::Text(path)) => {
                let path = self.socket_name("control", &Spanned::new(span, path));
                return path.map_or(ControlSocket::Derived, |path| ControlSocket::At { path, access: None });
            }
            Switched::On(Short::Table(table)) => table,
        };
        let mode = table.mode.and_then(|text| {
            let mode = self.file_mode("control", &text)?;
            if mode & 0o007 != 0 {
                let right = "write \"0660\", and the group of those who may";
                let what = format!(
                    "control: mode \"{}\" lets every user of this machine stop the proxy ({right})",
                    text.get_ref()
                );
                self.report.error(text.at(), what);
            }
            Some(mode)
        });
        let owner = RunAs { user: None, group: self.account("control.group", table.group) };
        // A group is named for a reason.
        let default = if owner.group.is_some() { 0o660 } else { 0o600 };
        let access = Access { mode: mode.unwrap_or(default), owner };
        let Some(path) = table.path else {
            // The derived path depends on the user who asks.
            self.missing(&span, "path", "control", "write where the socket is, or control = false for none");
            return ControlSocket::Derived;
        };
        let path = self.socket_name("control.path", &path);
        path.map_or(ControlSocket::Derived, |path| ControlSocket::At { path, access: Some(access) })
    }

    /// The path of a Unix socket.
    fn socket_name(&mut self, key: &str, path: &Spanned<String>) -> Option<PathBuf> {
        let checked = self.file_name(key, path)?;
        let (bytes, most) = (checked.as_os_str().len(), LONGEST_SOCKET_PATH);
        if bytes > most {
            let text =
                format!("{key}: \"{}\" has {bytes} bytes, a socket path has at most {most}", path.get_ref());
            self.report.error(path.at(), text);
        }
        Some(checked)
    }

    pub(super) fn file_name(&mut self, key: &str, path: &Spanned<String>) -> Option<PathBuf> {
        if path.get_ref().is_empty() {
            self.report.error(path.at(), format!("{key}: is empty; write a file's name, or leave it out"));
            return None;
        }
        Some(self.relative(path.get_ref()))
    }

    /// Names of environment variables.
    pub(super) fn variables(&mut self, names: Vec<Spanned<String>>) -> Vec<Box<str>> {
        for name in &names {
            if name.get_ref().is_empty() || name.get_ref().contains(['=', '\0']) {
                let right = "write the name alone, such as \"HTTPS_PROXY\"";
                let text =
                    format!("pass_environment: {:?} is not the name of a variable ({right})", name.get_ref());
                self.report.error(name.at(), text);
            }
        }
        names.into_iter().map(|name| name.into_inner().into()).collect()
    }

    pub(super) fn supervision(&mut self, raw: file::SupervisionTable) -> Supervision {
        let defaults = Supervision::default();
        let of = |key: &str| format!("supervision.{key}");
        Supervision {
            module_time_limit: self.time(
                &of("module_time_limit"),
                raw.module_time_limit.as_ref(),
                defaults.module_time_limit,
            ),
            // Zero is a wish that makes sense here: no module is slow.
            module_slow: raw.module_slow.map_or(defaults.module_slow, |slow| slow.get_ref().0),
            module_faults: self.integer(
                &of("module_faults"),
                raw.module_faults.as_ref(),
                0..=1000,
                defaults.module_faults,
            ),
            module_deaths: self.integer(
                &of("module_deaths"),
                raw.module_deaths.as_ref(),
                0..=1000,
                defaults.module_deaths,
            ),
            // Zero is a wish that makes sense here: no generation is rolled back.
            probation: raw.probation.map_or(defaults.probation, |probation| probation.get_ref().0),
            start_timeout: self.time(
                &of("start_timeout"),
                raw.start_timeout.as_ref(),
                defaults.start_timeout,
            ),
            max_draining: self.integer(
                &of("max_draining"),
                raw.max_draining.as_ref(),
                1..=256,
                defaults.max_draining,
            ),
            sandbox: raw
                .sandbox
                .and_then(|text| self.word(&of("sandbox"), &text, &[("on", true), ("off", false)]))
                .unwrap_or(defaults.sandbox),
        }
    }

    /// The form of the access log's lines.
    pub(super) fn log_format(&mut self, log: Option<&Spanned<file::AccessLogTable>>) -> LogFormat {
        let Some(text) = log.and_then(|log| log.get_ref().format.as_ref()) else { return LogFormat::Full };
        LogFormat::parse(text.get_ref()).unwrap_or_else(|wrong| {
            self.report.error(text.at(), format!("access_log.format: {:?} {wrong}", text.get_ref()));
            LogFormat::Full
        })
    }

    /// The error log.
    pub(super) fn log(
        &mut self,
        log: file::LogTable,
        access: Option<&Spanned<file::AccessLogTable>>,
    ) -> LogSettings {
        let words = [("text", LineForm::Text), ("json", LineForm::Json)];
        let form = log.format.and_then(|text| self.word("log.format", &text, &words)).unwrap_or_default();
        let level = log.level.map(|text| {
            if let Err(wrong) = text.get_ref().parse::<LogLevels>() {
                self.report.error(text.at(), format!("log.level: {wrong}"));
            }
            text.into_inner().into()
        });
        if let (Some(_), Some(syslog)) = (&log.file, &log.syslog) {
            let text = "log.syslog: the log goes to log.file already; write one of both";
            self.report.error(syslog.at(), text);
        }
        let access = access.and_then(|access| access.get_ref().path.as_ref());
        if let (Some(file), Some(access)) = (&log.file, access)
            && file.get_ref() == access.get_ref()
        {
            let text = format!("log.file: {:?} is the file of access_log.path, too", file.get_ref());
            self.report.error(file.at(), text);
        }
        let file = log.file.and_then(|path| self.file_name("log.file", &path)).map(LogTarget::File);
        let syslog = log.syslog.and_then(|path| self.socket_name("log.syslog", &path)).map(LogTarget::Syslog);
        LogSettings {
            form,
            level: level.unwrap_or(LogSettings::default().level),
            target: file.or(syslog).unwrap_or_default(),
        }
    }

    pub(super) fn access_log(&mut self, log: Spanned<file::AccessLogTable>) -> AccessLogTarget {
        let (span, log) = (log.span(), log.into_inner());
        let Some(path) = log.path else {
            self.missing(&span, "path", "access_log", "write path = \"stdout\" or a file's name");
            return AccessLogTarget::Off;
        };
        match path.get_ref().as_str() {
            "" => {
                let text =
                    "access_log.path: is empty; write \"stdout\" or a file's name, or leave [access_log] out";
                self.report.error(path.at(), text);
                AccessLogTarget::Off
            }
            "stdout" => AccessLogTarget::Stdout,
            file => AccessLogTarget::File(self.relative(file)),
        }
    }
}
