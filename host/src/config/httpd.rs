//! httpd's syntax → the raw form: the directives of the 2003 mail, and what a file of them needs besides.
//!
//! | directive | |
//! |---|---|
//! | `LoadModule X_module FILE` | loads module ID `X` |
//! | `<IfModule [!]X_module>`, `<IfModule [!]mod_X.c>` | its lines count only where that module is (not) loaded above |
//! | `LBServerCluster NAME URL` | one more server of a cluster |
//! | `LBClusterModule NAME ID` | which module balances it, where several are loaded |
//! | `LBProxyPass PREFIX NAME[/PATH]` | routes a prefix to a cluster; the first that matches wins |
//! | `LBModulePath DIR…` | where relative module files are looked for |
//! | `Listen [ADDRESS:]PORT` | where requests come in |
//! | `User NAME`, `Group NAME` | who serves, where root starts it |
//! | `PidFile FILE` | where the process says who it is |
//! | `LBControl PATH`, `LBControl Off` | the socket that `trylist reload` and the like speak to, or none |
//! | `Include FILE` | other files, by pattern too, relative to this one |
//! | `ServerName NAME` | accepted and not used: httpd needs it for links to itself, and we write none |
//!
//! As in httpd, an `<IfModule>` whose lines count may stay open at the end of a file, as the mail shows it (here with a
//! warning); one that is skipped may not.
//!
//! Departures from httpd: a relative `Include` starts at the including file, and takes files and patterns, not folders; an
//! open quote is an error; so are an `<IfModule>` that asks for anything but `X_module` or `mod_X.c`, and a second
//! LoadModule of one module; `Listen 80` is IPv4; there is no Define, no `${VAR}` and no IncludeOptional.

mod directive;
mod line;

use std::path::Path;

use toml::Spanned;

use self::directive::{ANYTHING, DIRECTIVES, DirectiveLine};
use self::line::{LogicalLine, lines, words};
use super::Files;
use super::file::{ControlTable, RootTable};
use super::include::IncludeStack;
use super::shape::{Short, Switched};
use super::source::{Diagnostics, Span};
use super::suggest::{did_you_mean, nearest};

/// The whole in marks; see [`Diagnostics::mark_lost`].
const ROOT: Span = 0..0;

/// Reads `text` and what it includes. Lines with mistakes in them are reported and left out.
pub(super) fn read(
    name: &str,
    text: &str,
    files: &mut Files,
    report: &mut Diagnostics,
) -> Option<(RootTable, Span)> {
    let (file, cluster_modules, open) = (RootTable::default(), Vec::new(), IncludeStack::default());
    let mut reader = HttpdReader { report, file, cluster_modules, files, open };
    reader.open.enter(Path::new(name)).expect("nothing is open yet");
    reader.read_file(name, text);
    reader.set_cluster_modules();
    Some((reader.file, ROOT))
}

/// The value of the last `LBControl` of a text. Included files are not searched.
pub(super) fn control_of(text: &str) -> Option<Switched<ControlTable>> {
    let lines = lines(text, 0).into_iter().rev().filter_map(|line| words(&line.text).ok());
    let mut found = lines.filter(|words| words.len() == 2 && is(&words[0], "LBControl"));
    found.next().map(|mut words| switched_control(words.remove(1)))
}

/// The argument of `LBControl`.
fn switched_control(path: String) -> Switched<ControlTable> {
    if is(&path, "Off") { Switched::Off } else { Switched::On(Short::Text(path)) }
}

struct HttpdReader<'a> {
    report: &'a mut Diagnostics,
    file: RootTable,
    /// Cluster and module ID of each `LBClusterModule`, which may stand before its cluster.
    cluster_modules: Vec<(Spanned<String>, Spanned<String>)>,
    files: &'a mut Files,
    open: IncludeStack,
}

/// An open section.
struct OpenSection {
    name: String,
    /// As written, without the brackets.
    head: String,
    at: usize,
}

/// Sections of one file. As in httpd, a section ends in the file in which it began.
#[derive(Default)]
struct OpenSections {
    /// Those whose lines count.
    open: Vec<OpenSection>,
    /// One whose lines do not, and how many of its own name are open in it. Its lines are not looked at.
    skipped: Option<(OpenSection, usize)>,
}

impl HttpdReader<'_> {
    fn read_file(&mut self, name: &str, text: &str) {
        let base = self.report.add_file(name, text);
        let directory = Path::new(name).parent().unwrap_or(Path::new(""));
        let mut sections = OpenSections::default();
        for line in lines(text, base) {
            match line.text.strip_prefix('<') {
                Some(tag) => self.section(&line, tag, &mut sections),
                None if sections.skipped.is_some() => (),
                None => self.directive(&line, directory),
            }
        }
        for section in sections.open {
            let text = format!("<{}> is not closed; it ends with the file", section.head);
            self.report.warn(self.report.place(section.at), text);
        }
        if let Some((section, _)) = sections.skipped.filter(|(section, _)| is(&section.name, "IfModule")) {
            let text = format!(
                "<{}> is skipped and not closed: all lines behind it would be left out",
                section.head
            );
            self.report.error(section.at, text);
        }
    }

    fn section(&mut self, line: &LogicalLine, tag: &str, sections: &mut OpenSections) {
        let Some((head, _)) = tag.rsplit_once('>') else {
            if sections.skipped.is_none() {
                self.report.error(line.at, format!("<{tag} has no closing \">\""));
            }
            return;
        };
        if let Some(name) = head.strip_prefix('/') {
            return self.close(line, name.trim_ascii(), sections);
        }
        let (name, argument) = head.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((head, ""));
        let section = OpenSection { name: name.to_owned(), head: head.to_owned(), at: line.at };
        if let Some((skipped, depth)) = &mut sections.skipped {
            *depth += usize::from(is(&skipped.name, name));
        } else if is(name, "VirtualHost") {
            // Its content is the main part of most files.
            self.mark(ANYTHING);
            let right = "remove the two lines around its content";
            self.report.error(line.at, format!("<{head}>: virtual hosts are not supported ({right})"));
            sections.open.push(section);
        } else if let Some(balancer) = balancer(argument).filter(|_| is(name, "Proxy")) {
            self.mark(ANYTHING);
            let right = format!("write LBServerCluster {balancer} URL for each BalancerMember");
            self.report.error(line.at, format!("<{head}>: {DIALECT} ({right})"));
            sections.skipped = Some((section, 1));
        } else if !is(name, "IfModule") {
            // Nobody knows what it would have said.
            self.mark(ANYTHING);
            self.report.error(line.at, format!("unknown section <{name}> (only <IfModule> is known)"));
            sections.skipped = Some((section, 1));
        } else if self.condition(line, argument.trim_ascii()) {
            sections.open.push(section);
        } else {
            sections.skipped = Some((section, 1));
        }
    }

    fn close(&mut self, line: &LogicalLine, name: &str, sections: &mut OpenSections) {
        if let Some((skipped, depth)) = &mut sections.skipped {
            *depth -= usize::from(is(&skipped.name, name));
            if *depth == 0 {
                sections.skipped = None;
            }
            return;
        }
        match sections.open.pop() {
            None => self.report.error(line.at, format!("</{name}> without <{name}>")),
            Some(open) if is(&open.name, name) => (),
            Some(open) => {
                let place = self.report.place(open.at);
                let text =
                    format!("expected </{}> for <{}> of {place}, found </{name}>", open.name, open.head);
                self.report.error(line.at, text);
                sections.open.push(open);
            }
        }
    }

    /// Whether the lines of an `<IfModule>` count.
    fn condition(&mut self, line: &LogicalLine, argument: &str) -> bool {
        let (is_negated, module) = match argument.strip_prefix('!') {
            Some(module) => (true, module.trim_ascii_start()),
            None => (false, argument),
        };
        let source_file = || module.strip_prefix("mod_").and_then(|name| name.strip_suffix(".c"));
        let Some(id) = module.strip_suffix("_module").or_else(source_file).filter(|id| !id.is_empty()) else {
            let right =
                "<IfModule X_module> or <IfModule mod_X.c>, with \"!\" before it where X is not loaded";
            self.report.error(line.at, format!("<IfModule {argument}> names no module (write {right})"));
            self.mark(ANYTHING);
            return false;
        };
        let is_loaded = self.loaded().any(|loaded| loaded == id);
        if !is_loaded && let Some(meant) = nearest(id, self.loaded()) {
            let text =
                format!("<IfModule {argument}>: no module \"{id}\" is loaded (did you mean \"{meant}\"?)");
            self.report.warn(self.report.place(line.at), text);
        }
        is_loaded != is_negated
    }

    fn loaded(&self) -> impl Iterator<Item = &str> {
        let entries = self.file.load_module.iter().flat_map(|table| &table.get_ref().0);
        entries.map(|(id, _)| id.get_ref().as_str())
    }

    fn directive(&mut self, line: &LogicalLine, directory: &Path) {
        let span = line.at..line.at + line.text.len();
        let words = match words(&line.text) {
            Ok(words) => words,
            Err(reason) => {
                self.mark(ANYTHING);
                return self.report.error(line.at, reason);
            }
        };
        let Some((name, arguments)) = words.split_first() else { return };
        let find = |name: &str| DIRECTIVES.iter().find(|directive| is(directive.name, name));
        let names = DIRECTIVES.iter().map(|directive| directive.name);
        let Some(directive) = find(name) else {
            if let Some(right) = mod_proxy(name, arguments) {
                self.mark(ANYTHING);
                return self.report.error(line.at, format!("{}: {DIALECT} ({right})", line.text));
            }
            let meant = nearest(name, names.clone()).and_then(find);
            meant.inspect(|meant| self.mark(meant.fills));
            let hint = did_you_mean(name, names);
            return self.report.error(line.at, format!("unknown directive \"{name}\"{hint}"));
        };
        if !directive.arguments.contains(&arguments.len()) {
            self.mark(directive.fills);
            let (name, takes, found) = (directive.name, directive.takes, arguments.len());
            return self.report.error(line.at, format!("{name} takes {takes} (found {found})"));
        }
        (directive.apply)(self, &DirectiveLine { directive, words: arguments, span, directory });
    }

    /// Reports a line that cannot be used.
    fn refuse(&mut self, line: &DirectiveLine<'_>, reason: &str) {
        self.mark(line.directive.fills);
        let text = format!("{} {}: {reason}", line.directive.name, line.words.join(" "));
        self.report.error(line.span.start, text);
    }

    /// Remembers that a line was left out that should have filled this part of the raw form.
    fn mark(&mut self, part: &str) {
        match part {
            // Nobody asks for a module that is not loaded, so its sections are ignored.
            ANYTHING | "load_module" => {
                for part in ["listener", "load_module", "cluster", "route"] {
                    self.report.mark_lost(&ROOT, part);
                }
            }
            part => self.report.mark_lost(&ROOT, part),
        }
    }
}

/// The warning about lines for httpd's own mod_proxy.
const DIALECT: &str = "is a directive of mod_proxy, which is not supported here";

/// The replacement of a line that is for mod_proxy.
fn mod_proxy(name: &str, arguments: &[String]) -> Option<String> {
    let argument = |i: usize| arguments.get(i).map_or("", String::as_str);
    if is(name, "BalancerMember") {
        let url = if balancer(argument(0)).is_some() { argument(1) } else { argument(0) };
        Some(format!("write LBServerCluster CLUSTER {url}"))
    } else if is(name, "ProxyPass") {
        let cluster = balancer(argument(1)).unwrap_or("CLUSTER");
        Some(format!("write LBProxyPass {} {cluster}", argument(0)))
    } else if is(name, "ProxySet") || is(name, "ProxyPassReverse") {
        Some("remove it, or write the configuration in TOML".to_owned())
    } else {
        None
    }
}

/// The name of a balancer of mod_proxy's.
fn balancer(url: &str) -> Option<&str> {
    let name = url.trim_matches('"').strip_prefix("balancer://")?.split('/').next()?;
    Some(if name.is_empty() { "CLUSTER" } else { name })
}

fn is(name: &str, other: &str) -> bool {
    name.eq_ignore_ascii_case(other)
}

#[cfg(test)]
mod tests;
