//! Requests in flight, summed over all generations; and for each generation, those of all others.

use std::collections::BTreeMap;

use crate::process::channel::message::Load;

/// The load of all generations.
#[derive(Debug, Default)]
pub(super) struct LoadSum {
    endpoints: BTreeMap<u64, u32>,
    clusters: BTreeMap<String, u32>,
}

/// Adds loads up.
pub(super) fn sum<'a>(loads: impl IntoIterator<Item = &'a Load>) -> LoadSum {
    let mut sum = LoadSum::default();
    for load in loads {
        for (endpoint, n) in &load.endpoints {
            add(sum.endpoints.entry(*endpoint).or_default(), *n);
        }
        for (cluster, n) in &load.clusters {
            add(sum.clusters.entry(cluster.clone()).or_default(), *n);
        }
    }
    sum
}

fn add(total: &mut u32, n: u32) {
    // Numbers of a worker are not trusted.
    *total = total.saturating_add(n);
}

impl LoadSum {
    /// The sum without the load of one generation, if it has reported one.
    pub(super) fn without(&self, load: Option<&Load>) -> Load {
        let none = Load::default();
        let load = load.unwrap_or(&none);
        let endpoints: BTreeMap<u64, u32> = load.endpoints.iter().copied().collect();
        let clusters: BTreeMap<&str, u32> =
            load.clusters.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        let rest = |total: u32, own: Option<&u32>| total.saturating_sub(own.copied().unwrap_or(0));
        let of_endpoint = |(id, total): (&u64, &u32)| {
            let n = rest(*total, endpoints.get(id));
            (n > 0).then_some((*id, n))
        };
        let of_cluster = |(name, total): (&String, &u32)| {
            let n = rest(*total, clusters.get(name.as_str()));
            (n > 0).then(|| (name.clone(), n))
        };
        Load {
            endpoints: self.endpoints.iter().filter_map(of_endpoint).collect(),
            clusters: self.clusters.iter().filter_map(of_cluster).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(endpoints: &[(u64, u32)], clusters: &[(&str, u32)]) -> Load {
        let clusters = clusters.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        Load { endpoints: endpoints.to_vec(), clusters }
    }

    #[test]
    fn each_is_told_what_all_others_have_together() {
        let loads =
            [load(&[(1, 3), (2, 1)], &[("a", 4)]), load(&[(2, 5)], &[("a", 1), ("b", 7)]), load(&[], &[])];
        let all = sum(&loads);
        assert_eq!(all.without(Some(&loads[0])), load(&[(2, 5)], &[("a", 1), ("b", 7)]));
        assert_eq!(all.without(Some(&loads[1])), load(&[(1, 3), (2, 1)], &[("a", 4)]));
        assert_eq!(all.without(None), load(&[(1, 3), (2, 6)], &[("a", 5), ("b", 7)]));
    }

    #[test]
    fn nonsense_of_a_worker_does_no_harm() {
        let loads = [load(&[(1, u32::MAX), (1, 2)], &[]), load(&[(1, 9)], &[])];
        let all = sum(&loads);
        assert_eq!(all.without(Some(&loads[1])), load(&[(1, u32::MAX - 9)], &[]));
        assert_eq!(all.without(Some(&loads[0])).endpoints, [(1, u32::MAX - 2)]);
    }
}
