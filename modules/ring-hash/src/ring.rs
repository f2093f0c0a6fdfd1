//! The ring itself: points of all servers in order, and the first at or behind a hash.

use std::collections::HashMap;

use crc32fast::Hasher;

/// Points of a server for each unit of its weight, as nginx and all other ketamas have it.
pub(crate) const POINTS: u64 = 160;

/// A point in one word: its hash in the upper half, whose it is in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point(u64);

impl Point {
    fn new(hash: u32, owner: u32) -> Self {
        Self(u64::from(hash) << 32 | u64::from(owner))
    }

    #[inline]
    fn hash(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Points in ascending order of their hashes, each hash once.
#[derive(Debug)]
pub(crate) struct Ring {
    points: Box<[Point]>,
    /// For each stretch of `1 << shift` hashes, the first point at or behind its beginning.
    guide: Box<[u32]>,
    shift: u32,
    owners: Owners,
}

/// Who has points: a server name, which is one endpoint or, where a name stands for several addresses, several.
#[derive(Debug, Default)]
struct Owners {
    /// The endpoints of each owner, in order.
    endpoints: Vec<Vec<u32>>,
    /// Whether every owner is one endpoint, and they are in the same order.
    single: bool,
}

/// Endpoints that share a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner<'a> {
    One(usize),
    Several(&'a [u32]),
}

impl Ring {
    /// The ring of endpoints with these names (as written: host, and port where there is one) and weights.
    pub(crate) fn new(endpoints: &[(&str, u32)]) -> Self {
        let (owners, chains) = owners(endpoints);
        let points = sorted(endpoints.iter().map(|(_, weight)| u64::from(*weight)).sum(), chains);
        // About eight points to a stretch: they share one or two cache lines, and the guide stays in a core's own
        // cache.
        let shift = 32 - (points.len() as u64 / 8).max(1).ilog2();
        let mut at = 0;
        let guide = (0..1_u64 << (32 - shift))
            .map(|stretch| {
                while points.get(at).is_some_and(|point| u64::from(point.hash()) < stretch << shift) {
                    at += 1;
                }
                at as u32
            })
            .collect();
        Self { points, guide, shift, owners }
    }

    /// How many points there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.points.len()
    }

    /// Index of the first point at or behind this hash, beginning anew behind the last.
    #[inline]
    pub(crate) fn find(&self, hash: u32) -> usize {
        let mut at = self.guide[(u64::from(hash) >> self.shift) as usize] as usize;
        while let Some(point) = self.points.get(at) {
            if point.hash() >= hash {
                return at;
            }
            at += 1;
        }
        0
    }

    /// Whose point this is.
    #[inline]
    pub(crate) fn owner(&self, point: usize) -> Owner<'_> {
        let owner = self.points[point].0 as u32;
        if self.owners.single {
            return Owner::One(owner as usize);
        }
        match self.owners.endpoints[owner as usize].as_slice() {
            [endpoint] => Owner::One(*endpoint as usize),
            endpoints => Owner::Several(endpoints),
        }
    }
}

/// The points of one name: each continues the CRC of the name with the point before it.
struct Chain {
    base: Hasher,
    last: u32,
    len: u64,
}

impl Chain {
    /// nginx looks for the port behind the last colon, if only digits follow; a socket has none.
    fn new(name: &str) -> Self {
        let (host, port) = match name.rsplit_once(':') {
            _ if name.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("unix:")) => (&name[5..], ""),
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, port),
            _ => (name, ""),
        };
        let mut base = Hasher::new();
        base.update(host.as_bytes());
        base.update(b"\0");
        base.update(port.as_bytes());
        Self { base, last: 0, len: 0 }
    }

    fn next(&mut self) -> u32 {
        let mut hash = self.base.clone();
        hash.update(&self.last.to_le_bytes());
        self.last = hash.finalize();
        self.len += 1;
        self.last
    }
}

/// The endpoints by name, and the points in nginx's order: endpoint by endpoint. One of a name that was there before
/// adds only what the others have not: nginx would make the same points again, and drop them.
fn owners(endpoints: &[(&str, u32)]) -> (Owners, impl Iterator<Item = Point>) {
    let (mut owners, mut known) = (Owners::default(), HashMap::new());
    let mut of_endpoint = Vec::with_capacity(endpoints.len());
    let mut chains = Vec::with_capacity(endpoints.len());
    for (idx, (name, weight)) in endpoints.iter().enumerate() {
        let owner = *known.entry(*name).or_insert(owners.endpoints.len());
        if owner == owners.endpoints.len() {
            owners.endpoints.push(Vec::new());
            chains.push(Chain::new(name));
        }
        owners.endpoints[owner].push(idx as u32);
        of_endpoint.push((owner, u64::from(*weight) * POINTS));
    }
    owners.single = owners.endpoints.len() == endpoints.len();
    let points = of_endpoint.into_iter().flat_map(move |(owner, len)| {
        let chain = &mut chains[owner];
        let more = len.saturating_sub(chain.len);
        (0..more).map(|_| Point::new(chain.next(), owner as u32)).collect::<Vec<_>>()
    });
    (owners, points)
}

/// Bits of a hash by which points are first parted, and then once more. 1.6 million points make parts of 12 KiB, which
/// the nearest cache holds while they are sorted; sorting them as a whole takes twice the time.
const PART_BITS: u32 = 10;
const BIN_BITS: u32 = 9;

/// The points by hash, of equal ones the first.
fn sorted(total_weight: u64, chains: impl Iterator<Item = Point>) -> Box<[Point]> {
    let len = (total_weight * POINTS) as usize;
    let mut points = if len < 1 << 16 { chains.collect() } else { parted(len, chains) };
    // By hash alone, and stable: what came first stays first. In order already where they were parted, unless a part
    // overflowed.
    if !points.is_sorted_by_key(|point| point.hash()) {
        points.sort_by_key(|point| point.hash());
    }
    points.dedup_by_key(|point| point.hash());
    points.into_boxed_slice()
}

/// Sorted by two rounds of counting, which the hashes of a CRC fill evenly; but for those that found their part full.
fn parted(len: usize, points: impl Iterator<Item = Point>) -> Vec<Point> {
    const PARTS: usize = 1 << PART_BITS;
    // Eight standard deviations above the mean.
    let (mean, mut overflow) = (len / PARTS, Vec::new());
    let room = mean + 8 * mean.isqrt() + 32;
    let mut parts = vec![Point(0); room * PARTS];
    let mut used = [0; PARTS];
    for point in points {
        let part = (point.0 >> (64 - PART_BITS)) as usize;
        match used[part] {
            full if full == room => overflow.push(point),
            at => {
                parts[part * room + at] = point;
                used[part] += 1;
            }
        }
    }
    let mut sorted = vec![Point(0); used.iter().sum()];
    let mut rest = sorted.as_mut_slice();
    for (part, used) in parts.chunks_exact(room).zip(used) {
        let (place, behind) = rest.split_at_mut(used);
        sort_part(&part[..used], place);
        rest = behind;
    }
    sorted.append(&mut overflow);
    sorted
}

/// The points of one part, sorted into their place.
fn sort_part(part: &[Point], place: &mut [Point]) {
    const BINS: usize = 1 << BIN_BITS;
    let bin = |point: &Point| (point.0 >> (64 - PART_BITS - BIN_BITS)) as usize % BINS;
    let mut ends = [0; BINS];
    part.iter().for_each(|point| ends[bin(point)] += 1);
    let mut before = 0;
    for end in &mut ends {
        before += std::mem::replace(end, before);
    }
    for point in part {
        let end = &mut ends[bin(point)];
        place[*end] = *point;
        *end += 1;
    }
    // A few to a bin are left, and equal hashes stay in their order.
    for from in 1..place.len() {
        let (point, mut to) = (place[from], from);
        while to > 0 && place[to - 1].hash() > point.hash() {
            place[to] = place[to - 1];
            to -= 1;
        }
        place[to] = point;
    }
}

#[cfg(test)]
mod tests {
    use lb_api::Rng;

    use super::*;

    /// nginx's own way: all points of all peers, sorted, the first of equals kept, found by halving.
    struct Nginx(Vec<(u32, String)>);

    impl Nginx {
        fn new(peers: &[(&str, u32)]) -> Self {
            let mut points = Vec::new();
            for (name, weight) in peers {
                let (host, port) = name.rsplit_once(':').unwrap_or((name, ""));
                let mut last = 0_u32;
                for _ in 0..weight * 160 {
                    last = crc([host.as_bytes(), b"\0", port.as_bytes(), &last.to_le_bytes()].concat());
                    points.push((last, (*name).to_owned()));
                }
            }
            points.sort_by_key(|(hash, _)| *hash);
            points.dedup_by_key(|(hash, _)| *hash);
            Self(points)
        }

        fn find(&self, hash: u32) -> usize {
            self.0.partition_point(|(of, _)| *of < hash) % self.0.len()
        }
    }

    /// CRC-32 bit by bit.
    fn crc(bytes: Vec<u8>) -> u32 {
        let step = |crc: u32, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        !bytes.into_iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(byte), step))
    }

    fn name_of<'a>(ring: &Ring, peers: &[(&'a str, u32)], point: usize) -> &'a str {
        match ring.owner(point) {
            Owner::One(endpoint) => peers[endpoint].0,
            Owner::Several(endpoints) => peers[endpoints[0] as usize].0,
        }
    }

    fn compare(peers: &[(&str, u32)], seed: u64) {
        let (ring, nginx) = (Ring::new(peers), Nginx::new(peers));
        assert_eq!(ring.len(), nginx.0.len());
        for (at, (hash, name)) in nginx.0.iter().enumerate() {
            assert_eq!(
                (ring.points[at].hash(), name_of(&ring, peers, at)),
                (*hash, name.as_str()),
                "point {at}"
            );
        }
        let mut rng = Rng::new(seed);
        let drawn = (0..2000).map(|_| rng.bits() as u32);
        let edges = nginx.0.iter().step_by(nginx.0.len().div_ceil(2000)).map(|(hash, _)| *hash);
        let edges = edges.flat_map(|hash| [hash.wrapping_sub(1), hash, hash.wrapping_add(1)]);
        for hash in drawn.chain(edges).chain([0, 1, u32::MAX]) {
            assert_eq!(ring.find(hash), nginx.find(hash), "hash {hash:#x} of {peers:?}");
        }
    }

    #[test]
    fn has_nginx_s_points() {
        compare(&[("a.example", 1)], 1);
        compare(&[("10.0.0.1:8080", 1), ("10.0.0.2:8080", 3), ("b.example:80", 2)], 2);
        compare(&[("[::1]:8080", 1), ("[::1]:8081", 1)], 3);
    }

    #[test]
    fn a_large_ring_is_sorted_as_a_small_one() {
        let names: Vec<String> = (0..500).map(|i| format!("10.1.{}.{}:80", i / 250, i % 250)).collect();
        let peers: Vec<(&str, u32)> =
            names.iter().map(|name| (name.as_str(), 1 + name.len() as u32 % 3)).collect();
        assert!(peers.len() as u64 * POINTS > 1 << 16);
        compare(&peers, 4);
    }

    #[test]
    fn a_part_that_overflows_loses_no_point() {
        // All hashes in one part, which no CRC does.
        let points = |n: u32| (0..n).rev().map(|i| Point::new(i / 2, i));
        let sorted = sorted(1000, points(100_000));
        assert_eq!(sorted.len(), 50_000);
        assert!(
            sorted.iter().enumerate().all(|(i, point)| point.hash() == i as u32),
            "every hash once, in order"
        );
        // Of equal ones the first, which is the one with the larger number here.
        assert!(sorted.iter().all(|point| point.0 as u32 % 2 == 1));
    }

    #[test]
    fn endpoints_of_one_name_share_its_points() {
        let peers = [("a:1", 1), ("b:1", 2), ("a:1", 3), ("a:1", 2)];
        compare(&peers, 5);
        let ring = Ring::new(&peers);
        let several = (0..ring.len()).filter_map(|point| match ring.owner(point) {
            Owner::Several(endpoints) => Some(endpoints.to_vec()),
            Owner::One(_) => None,
        });
        let several: Vec<_> = several.collect();
        assert_eq!(several.len(), 3 * 160);
        assert!(several.iter().all(|endpoints| *endpoints == [0, 2, 3]));
    }

    #[test]
    fn only_a_port_is_a_port() {
        let first = |name| Chain::new(name).next();
        let of = |bytes: &[u8]| crc([bytes, &[0; 4]].concat());
        assert_eq!(first("a:80"), of(b"a\080"));
        assert_eq!(first("a"), of(b"a\0"));
        assert_eq!(first("a:b"), of(b"a:b\0"));
        assert_eq!(first("[::1]"), of(b"[::1]\0"));
        assert_eq!(first("unix:/run/a:1"), of(b"/run/a:1\0"));
    }
}
