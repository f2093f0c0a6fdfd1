//! The arguments and effect of each directive.

use std::ops::RangeInclusive;
use std::path::Path;

use toml::Spanned;

use super::super::file;
use super::super::shape::{Named, Short};
use super::super::source::{At, Span};
use super::super::suggest::did_you_mean;
use super::{HttpdReader, ROOT, is, switched_control};

pub(super) struct Directive {
    pub(super) name: &'static str,
    pub(super) arguments: RangeInclusive<usize>,
    pub(super) takes: &'static str,
    /// The part of the raw form that it fills; where a line of it is wrong, nothing there is called missing.
    pub(super) fills: &'static str,
    pub(super) apply: fn(&mut HttpdReader<'_>, &DirectiveLine<'_>),
}

pub(super) const DIRECTIVES: [Directive; 12] = [
    Directive {
        name: "LoadModule",
        arguments: 2..=2,
        takes: "two arguments, a module's name and its file",
        fills: "load_module",
        apply: |reader, line| reader.load_module(line),
    },
    Directive {
        name: "LBServerCluster",
        arguments: 2..=2,
        takes: "two arguments, a cluster's name and a server's URL",
        fills: "cluster",
        apply: |reader, line| reader.server_cluster(line),
    },
    Directive {
        name: "LBClusterModule",
        arguments: 2..=2,
        takes: "two arguments, a cluster's name and a module ID",
        fills: "",
        apply: |reader, line| reader.cluster_module(line),
    },
    Directive {
        name: "LBProxyPass",
        arguments: 2..=2,
        takes: "two arguments, a path prefix and a cluster's name",
        fills: "route",
        apply: |reader, line| reader.proxy_pass(line),
    },
    Directive {
        name: "LBModulePath",
        arguments: 1..=usize::MAX,
        takes: "one or more arguments, directories in which module files are searched",
        fills: "",
        apply: |reader, line| reader.module_path(line),
    },
    Directive {
        name: "Listen",
        arguments: 1..=2,
        takes: "one argument, an address with a port",
        fills: "listener",
        apply: |reader, line| reader.listen(line),
    },
    Directive {
        name: "Include",
        arguments: 1..=1,
        takes: "one argument, a file or a pattern",
        fills: ANYTHING,
        apply: |reader, line| reader.include(line),
    },
    Directive {
        name: "User",
        arguments: 1..=1,
        takes: "one argument, the user that serves where root starts it",
        fills: "",
        apply: |reader, line| reader.file.user = Some(line.spanned(&line.words[0])),
    },
    Directive {
        name: "Group",
        arguments: 1..=1,
        takes: "one argument, the group that serves where root starts it",
        fills: "",
        apply: |reader, line| reader.file.group = Some(line.spanned(&line.words[0])),
    },
    Directive {
        name: "PidFile",
        arguments: 1..=1,
        takes: "one argument, a file",
        fills: "",
        apply: |reader, line| reader.file.pid_file = Some(line.spanned(&line.words[0])),
    },
    Directive {
        name: "LBControl",
        arguments: 1..=1,
        takes: "one argument, the path of the control socket or Off",
        fills: "",
        apply: |reader, line| {
            let path = line.spanned(&line.words[0]);
            reader.file.control = Some(Spanned::new(path.span(), switched_control(path.into_inner())));
        },
    },
    Directive {
        name: "ServerName",
        arguments: 1..=1,
        takes: "one argument, the name of this server",
        fills: "",
        apply: |_, _| (),
    },
];

/// Lines that are missing may have been meant to say anything.
pub(super) const ANYTHING: &str = "*";

pub(super) struct DirectiveLine<'a> {
    pub(super) directive: &'static Directive,
    pub(super) words: &'a [String],
    pub(super) span: Span,
    /// Directory of the file that the line is in.
    pub(super) directory: &'a Path,
}

impl DirectiveLine<'_> {
    fn spanned(&self, text: impl Into<String>) -> Spanned<String> {
        Spanned::new(self.span.clone(), text.into())
    }
}

impl HttpdReader<'_> {
    fn load_module(&mut self, line: &DirectiveLine<'_>) {
        let Some(id) = line.words[0].strip_suffix("_module") else {
            let right = format!("a module's name ends in _module (write {}_module)", line.words[0]);
            return self.refuse(line, &right);
        };
        let entry = (line.spanned(id), Spanned::new(line.span.clone(), Short::Text(line.words[1].clone())));
        let table = self.file.load_module.get_or_insert_with(|| Spanned::new(ROOT, Named(Vec::new())));
        table.get_mut().0.push(entry);
    }

    fn server_cluster(&mut self, line: &DirectiveLine<'_>) {
        let server = Spanned::new(line.span.clone(), Short::Text(line.words[1].clone()));
        let clusters = &mut self.file.cluster.0;
        let name = line.words[0].as_str();
        match clusters.iter_mut().find(|cluster| is_named(cluster, name)) {
            Some(cluster) => cluster.get_mut().servers.get_or_insert_default().push(server),
            None => clusters.push(Spanned::new(
                line.span.clone(),
                file::ClusterTable {
                    name: Some(line.spanned(name)),
                    servers: Some(vec![server]),
                    ..file::ClusterTable::default()
                },
            )),
        }
    }

    fn cluster_module(&mut self, line: &DirectiveLine<'_>) {
        // The ID as it is, or under the name that LoadModule has for it.
        let id = line.words[1].strip_suffix("_module").unwrap_or(&line.words[1]);
        self.cluster_modules.push((line.spanned(&line.words[0]), line.spanned(id)));
    }

    pub(super) fn set_cluster_modules(&mut self) {
        for (name, id) in std::mem::take(&mut self.cluster_modules) {
            let clusters = &mut self.file.cluster.0;
            match clusters.iter_mut().find(|cluster| is_named(cluster, name.get_ref())) {
                Some(cluster) => match &cluster.get_ref().module {
                    None => cluster.get_mut().module = Some(id),
                    Some(first) => {
                        let place = self.report.place(first.at());
                        let text = format!("LBClusterModule {name} {id}: {place} says {first} already");
                        self.report.error(name.at(), text);
                    }
                },
                None if self.report.is_lost(&ROOT, "cluster") => (),
                None => {
                    let names = clusters.iter().filter_map(|cluster| cluster.get_ref().name.as_ref());
                    let hint = did_you_mean(name.get_ref(), names.map(|name| name.get_ref().as_str()));
                    let text = format!("LBClusterModule {name} {id}: no cluster \"{name}\"{hint}");
                    self.report.error(name.at(), text);
                }
            }
        }
    }

    fn proxy_pass(&mut self, line: &DirectiveLine<'_>) {
        let target = line.words[1].as_str();
        if target.contains("://") {
            return self.refuse(line, "takes a cluster's name where ProxyPass takes a URL");
        }
        if target == "!" {
            return self.refuse(line, "\"!\" is not supported; route the other prefixes instead");
        }
        let (cluster, rewrite) = match target.find('/') {
            Some(0) => return self.refuse(line, "names no cluster (write CLUSTER/PATH to map the prefix)"),
            Some(slash) => (&target[..slash], Some(line.spanned(&target[slash..]))),
            None => (target, None),
        };
        let route = file::RouteTable {
            path: Some(line.spanned(&line.words[0])),
            cluster: Some(line.spanned(cluster)),
            rewrite,
            ..file::RouteTable::default()
        };
        self.file.route.0.push(Spanned::new(line.span.clone(), route));
    }

    fn module_path(&mut self, line: &DirectiveLine<'_>) {
        let directories = line.words.iter().map(|directory| line.spanned(directory));
        self.file.module_path.get_or_insert_default().extend(directories);
    }

    fn listen(&mut self, line: &DirectiveLine<'_>) {
        if let Some(protocol) = line.words.get(1).filter(|protocol| !is(protocol, "http")) {
            return self.refuse(line, &format!("protocol \"{protocol}\" is not supported, only http"));
        }
        // A port alone means all addresses; of IPv4 ones, since not every machine has others.
        let address = match line.words[0].as_str() {
            port if port.bytes().all(|byte| byte.is_ascii_digit()) => format!("0.0.0.0:{port}"),
            address => {
                address.strip_prefix("*:").map_or(address.to_owned(), |port| format!("0.0.0.0:{port}"))
            }
        };
        let listener =
            file::ListenerTable { address: Some(line.spanned(address)), ..file::ListenerTable::default() };
        self.file.listener.0.push(Spanned::new(line.span.clone(), listener));
    }

    fn include(&mut self, line: &DirectiveLine<'_>) {
        let files = match self.files.included(&line.words[0], line.directory) {
            Ok(files) if files.is_empty() => return self.refuse(line, "matches no file"),
            Ok(files) => files,
            Err(reason) => return self.refuse(line, &reason),
        };
        for path in files {
            let name = path.display().to_string();
            let entered = self.open.enter(&path);
            let text = entered.and_then(|()| self.files.text(&path).inspect_err(|_| self.open.leave()));
            match text {
                Ok(text) => {
                    self.read_file(&name, &text);
                    self.open.leave();
                }
                Err(reason) => self.refuse(line, &format!("{name} {reason}")),
            }
        }
    }
}

fn is_named(cluster: &Spanned<file::ClusterTable>, name: &str) -> bool {
    cluster.get_ref().name.as_ref().is_some_and(|known| known.get_ref() == name)
}
