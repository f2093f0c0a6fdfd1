//! Marks that operators set on servers at run time (`trylist server`). They are kept over reloads and crashes, until the
//! configuration changes the same setting.

use crate::config::{Config, Server};
use crate::process::channel::message::OperatorMark;
use crate::process::control::{MarkStatus, ServerMark};

/// All of them, by cluster and URL.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks(Vec<Marked>);

#[derive(Clone, Debug)]
struct Marked {
    mark: OperatorMark,
    /// `drain` and weight in the configuration when the mark was set. A change there replaces the mark.
    configured: (bool, u16),
}

impl Marks {
    /// Sets one; or says why not.
    pub(super) fn set(
        &mut self,
        config: &Config,
        cluster: &str,
        url: &str,
        mark: ServerMark,
    ) -> Result<OperatorMark, String> {
        let server = server(config, cluster, url)?;
        if mark == ServerMark::Weight(0) {
            return Err(
                "a weight is a number from 1 to 65535; to give a server nothing, let it drain".to_owned()
            );
        }
        let configured = (server.drain, server.weight);
        let is_it = |marked: &&mut Marked| marked.mark.cluster == cluster && marked.mark.url == url;
        let marked = match self.0.iter_mut().find(is_it) {
            Some(marked) => marked,
            None => {
                let mark =
                    OperatorMark { cluster: cluster.into(), url: url.into(), drain: None, weight: None };
                self.0.push(Marked { mark, configured });
                self.0.last_mut().expect("it was just pushed")
            }
        };
        match mark {
            ServerMark::Drain => marked.mark.drain = Some(true),
            ServerMark::Ready => marked.mark.drain = Some(false),
            ServerMark::Weight(weight) => marked.mark.weight = Some(weight),
        }
        Ok(marked.mark.clone())
    }

    /// Forgets what a new configuration says otherwise, and says of each what became of it.
    pub(super) fn reconcile(&mut self, config: &Config) -> Vec<String> {
        let mut said = Vec::new();
        self.0.retain_mut(|marked| {
            let OperatorMark { cluster, url, .. } = &marked.mark;
            let what = format!("cluster \"{cluster}\": server \"{url}\"");
            let Ok(server) = server(config, cluster, url) else {
                said.push(format!("{what} was removed, and its runtime mark too"));
                return false;
            };
            let (drain, weight) = marked.configured;
            if server.drain != drain && marked.mark.drain.take().is_some() {
                said.push(format!(
                    "{what}: drain = {} from the configuration replaces the runtime mark",
                    server.drain
                ));
            }
            if server.weight != weight && marked.mark.weight.take().is_some() {
                said.push(format!(
                    "{what}: weight = {} from the configuration replaces the runtime mark",
                    server.weight
                ));
            }
            marked.configured = (server.drain, server.weight);
            marked.mark.drain.is_some() || marked.mark.weight.is_some()
        });
        said
    }

    /// For a worker of this configuration, which may never come to serve: what it says otherwise is left out.
    pub(super) fn of(&self, config: &Config) -> Vec<OperatorMark> {
        let mut marks = self.clone();
        marks.reconcile(config);
        marks.0.into_iter().map(|marked| marked.mark).collect()
    }

    /// For an operator.
    pub(super) fn status(&self) -> Vec<MarkStatus> {
        let status = |Marked { mark: OperatorMark { cluster, url, drain, weight }, .. }: &Marked| {
            MarkStatus { cluster: cluster.clone(), url: url.clone(), drain: *drain, weight: *weight }
        };
        self.0.iter().map(status).collect()
    }
}

fn server<'a>(config: &'a Config, cluster: &str, url: &str) -> Result<&'a Server, String> {
    let found = config.clusters.iter().find(|known| *known.name == *cluster);
    let found = found.ok_or_else(|| {
        let names: Vec<&str> = config.clusters.iter().map(|cluster| &*cluster.name).collect();
        format!("there is no cluster \"{cluster}\" (there are: {})", names.join(", "))
    })?;
    found.servers.iter().find(|server| *server.url == *url).ok_or_else(|| {
        let urls: Vec<&str> = found.servers.iter().map(|server| &*server.url).collect();
        format!("cluster \"{cluster}\" has no server \"{url}\" (it has: {})", urls.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Syntax};

    fn config(server: &str) -> Config {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n[[cluster]]\nname = \"c\"\n\
             servers = [{server}]\n[[route]]\npath = \"/\"\ncluster = \"c\"\n"
        );
        config::parse("t.toml", &text, Syntax::Toml).unwrap().0
    }

    #[test]
    fn a_mark_stays_until_the_configuration_says_something_new_of_the_same() {
        let before = config("{ url = \"http://a\", weight = 2 }");
        let mut marks = Marks::default();
        marks.set(&before, "c", "http://a", ServerMark::Drain).unwrap();
        marks.set(&before, "c", "http://a", ServerMark::Weight(7)).unwrap();
        assert_eq!(marks.reconcile(&before), Vec::<String>::new());
        let said = marks.reconcile(&config("{ url = \"http://a\", weight = 3 }"));
        assert_eq!(
            said,
            [
                "cluster \"c\": server \"http://a\": weight = 3 from the configuration replaces the runtime mark"
            ]
        );
        let left = marks.of(&before);
        assert_eq!((left[0].drain, left[0].weight), (Some(true), None));
        let gone = config("\"http://b\"");
        assert!(marks.of(&gone).is_empty() && marks.of(&before).len() == 1, "it was only asked for");
        assert_eq!(marks.reconcile(&gone).len(), 1);
        assert!(marks.of(&before).is_empty());
    }

    #[test]
    fn names_that_are_not_there_are_told_with_those_that_are() {
        let (config, mut marks) = (config("\"http://a\""), Marks::default());
        let of = |marks: &mut Marks, cluster, url| {
            marks.set(&config, cluster, url, ServerMark::Ready).unwrap_err()
        };
        assert_eq!(of(&mut marks, "d", "http://a"), "there is no cluster \"d\" (there are: c)");
        assert_eq!(
            of(&mut marks, "c", "http://b"),
            "cluster \"c\" has no server \"http://b\" (it has: http://a)"
        );
        assert!(marks.of(&config).is_empty());
    }
}
