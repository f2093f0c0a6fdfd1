//! The ring itself: points of all servers in order, and the first at or behind a hash.

use std::collections::HashMap;

use crc32fast::Hasher;

/// Points of a server for each unit of its weight, as nginx and all other ketamas have it.
pub(crate) const POINTS: u64 = 160;

/// A point on its way into the ring: its hash in the upper half, its owner in the lower.
#[derive(Clone, Copy, Debug)]
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
///
/// The hashes of a ring are even enough to be parted into stretches of a few points each. Which stretch a point is in
/// says the upper bits of its hash, so that the lower ones and its owner fit into 32 bits: there are at least ten
/// stretches for each owner. What a look costs in a large ring is memory that no near cache holds, so that there is
/// little of it: a stretch is about a cache line, and the guide to a ring of 10,000 servers half a megabyte beside 6.4.
#[derive(Debug)]
pub(crate) struct Ring {
    /// Lower bits of the hash above, owner below; and a window of nothing behind the last.
    points: Box<[u32]>,
    /// For each stretch, its first point; one more than there are stretches.
    guide: Box<[u32]>,
    /// Bits of a hash that say the place in a stretch.
    low_bits: u32,
    owners: Owners,
}

/// Points that are compared at once, which is most stretches.
const WINDOW: usize = 16;

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
        let len = endpoints.iter().map(|(_, weight)| u64::from(*weight) * POINTS).sum::<u64>() as usize;
        let (owners, chains) = owners(endpoints);
        let mut packer = Packer::new(len);
        in_order(len, chains, |point| packer.push(point));
        packer.finish(owners)
    }

    /// How many points there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.points.len() - WINDOW
    }

    /// Index of the first point at or behind this hash, beginning anew behind the last.
    #[inline]
    pub(crate) fn find(&self, hash: u32) -> usize {
        let stretch = (hash >> self.low_bits) as usize;
        let (begin, end) = (self.guide[stretch] as usize, self.guide[stretch + 1] as usize);
        let low = hash << (32 - self.low_bits);
        // Without a branch that depends on the hash: it would be mispredicted every other time.
        let window = &self.points[begin..begin + WINDOW];
        let lower = window.iter().zip(begin..).map(|(point, at)| usize::from(*point < low && at < end));
        let mut at = begin + lower.sum::<usize>();
        while at >= begin + WINDOW && at < end && self.points[at] < low {
            at += 1;
        }
        // Behind the last of a stretch stands the first of the next.
        if at == self.len() { 0 } else { at }
    }

    /// Whose point this is.
    #[inline]
    pub(crate) fn owner(&self, point: usize) -> Owner<'_> {
        let owner = self.points[point] & (u32::MAX >> self.low_bits);
        if self.owners.single {
            return Owner::One(owner as usize);
        }
        match self.owners.endpoints[owner as usize].as_slice() {
            [endpoint] => Owner::One(*endpoint as usize),
            endpoints => Owner::Several(endpoints),
        }
    }

    #[cfg(test)]
    fn hash(&self, point: usize) -> u32 {
        let stretch = self.guide.partition_point(|first| *first as usize <= point) as u32 - 1;
        stretch << self.low_bits | self.points[point] >> (32 - self.low_bits)
    }
}

/// Makes a ring of points that come in order.
struct Packer {
    points: Vec<u32>,
    guide: Vec<u32>,
    low_bits: u32,
    last: Option<u32>,
}

impl Packer {
    fn new(len: usize) -> Self {
        // Eight to sixteen points to a stretch.
        let stretch_bits = (len / 8).ilog2();
        let guide = vec![0; (1 << stretch_bits) + 1];
        Self { points: Vec::with_capacity(len + WINDOW), guide, low_bits: 32 - stretch_bits, last: None }
    }

    /// Of equal hashes the first counts.
    #[inline]
    fn push(&mut self, point: Point) {
        let hash = point.hash();
        if self.last.replace(hash) == Some(hash) {
            return;
        }
        // How many, for now: a loop to the next stretch would be mispredicted all the time.
        self.guide[(hash >> self.low_bits) as usize + 1] += 1;
        self.points.push(hash << (32 - self.low_bits) | point.0 as u32);
    }

    fn finish(mut self, owners: Owners) -> Ring {
        let mut first = 0;
        for count in &mut self.guide {
            first += *count;
            *count = first;
        }
        self.points.extend([u32::MAX; WINDOW]);
        Ring { points: self.points.into(), guide: self.guide.into(), low_bits: self.low_bits, owners }
    }
}

/// The points of one name: each is the CRC of the name and the point before it.
///
/// A CRC is linear. So with `F` for what four bytes 0 make of a CRC, the point behind `p` is `F(p)` exclusive-or a number
/// that only the name makes, which is the first point, since that one follows a 0; and the one four further on is
/// `F⁴(p)` exclusive-or the fourth. Four such sequences side by side take a fifth of the time of a CRC for each point,
/// which waits for the one before.
struct Chain {
    next: [u32; 4],
    fourth: u32,
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
        let mut last = 0_u32;
        let next = [(); 4].map(|()| {
            let mut hash = base.clone();
            hash.update(&last.to_le_bytes());
            last = hash.finalize();
            last
        });
        Self { next, fourth: last, len: 0 }
    }

    /// The next four points. A weight has a number of points that is divisible by that.
    #[inline]
    fn four(&mut self) -> [u32; 4] {
        let four = self.next;
        self.next = four.map(|point| behind_16(point) ^ self.fourth);
        self.len += 4;
        four
    }
}

/// What 16 bytes 0 make of this CRC.
#[inline]
fn behind_16(crc: u32) -> u32 {
    let [a, b, c, d] = crc.to_le_bytes();
    let [of_a, of_b, of_c, of_d] = &BEHIND_16;
    of_a[usize::from(a)] ^ of_b[usize::from(b)] ^ of_c[usize::from(c)] ^ of_d[usize::from(d)]
}

/// The same for each byte of a CRC by itself.
static BEHIND_16: [[u32; 256]; 4] = {
    let mut tables = [[0; 256]; 4];
    let mut entry = 0;
    while entry < 4 * 256 {
        let mut crc = (entry as u32 % 256) << (8 * (entry / 256));
        let mut bit = 0;
        while bit < 16 * 8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
            bit += 1;
        }
        tables[entry / 256][entry % 256] = crc;
        entry += 1;
    }
    tables
};

/// The points of all names, in nginx's order: endpoint by endpoint.
struct Chains {
    of_owner: Vec<Chain>,
    /// Owner of each endpoint, and how many points that one asks for.
    of_endpoint: Vec<(usize, u64)>,
}

impl Chains {
    /// Hands over all points. An endpoint whose name was there before adds only what the others have not: nginx would
    /// make the same points again, and drop them.
    fn each(mut self, mut take: impl FnMut(Point)) {
        for (owner, len) in self.of_endpoint {
            let chain = &mut self.of_owner[owner];
            while chain.len < len {
                chain.four().into_iter().for_each(|hash| take(Point::new(hash, owner as u32)));
            }
        }
    }
}

fn owners(endpoints: &[(&str, u32)]) -> (Owners, Chains) {
    let (mut owners, mut known) = (Owners::default(), HashMap::with_capacity(endpoints.len()));
    let mut chains = Chains { of_owner: Vec::new(), of_endpoint: Vec::new() };
    for (idx, (name, weight)) in endpoints.iter().enumerate() {
        let owner = *known.entry(*name).or_insert(owners.endpoints.len());
        if owner == owners.endpoints.len() {
            owners.endpoints.push(Vec::new());
            chains.of_owner.push(Chain::new(name));
        }
        owners.endpoints[owner].push(idx as u32);
        chains.of_endpoint.push((owner, u64::from(*weight) * POINTS));
    }
    owners.single = owners.endpoints.len() == endpoints.len();
    (owners, chains)
}

/// Bits of a hash by which points are first parted, and then once more. 1.6 million points make parts of 12 KiB, which
/// the nearest cache holds while they are sorted; as a whole they would take twice the time.
const PART_BITS: u32 = 10;
const BIN_BITS: u32 = 11;

/// Hands over the points by hash; equal ones in the order in which they come.
fn in_order(len: usize, chains: Chains, mut take: impl FnMut(Point)) {
    if len < 1 << 16 {
        let mut points = Vec::with_capacity(len);
        chains.each(|point| points.push(point));
        points.sort_by_key(|point: &Point| point.hash());
        points.into_iter().for_each(take);
        return;
    }
    let mut parts = Parts::new(len);
    chains.each(|point| parts.put(point));
    parts.in_order(&mut take);
}

/// Points in as many parts as the upper bits of a hash make. A CRC fills them evenly.
struct Parts {
    points: Vec<Point>,
    used: Vec<usize>,
    /// What each part has room for: eight standard deviations above the mean.
    room: usize,
    /// What found its part full.
    overflow: Vec<Point>,
}

impl Parts {
    fn new(len: usize) -> Self {
        let mean = len >> PART_BITS;
        let room = mean + 8 * mean.isqrt() + 32;
        let points = vec![Point(0); room << PART_BITS];
        Self { points, used: vec![0; 1 << PART_BITS], room, overflow: Vec::new() }
    }

    #[inline]
    fn put(&mut self, point: Point) {
        let part = (point.0 >> (64 - PART_BITS)) as usize;
        match self.used[part] {
            full if full == self.room => self.overflow.push(point),
            used => {
                self.points[part * self.room + used] = point;
                self.used[part] += 1;
            }
        }
    }

    fn in_order(self, take: &mut impl FnMut(Point)) {
        let parts = self.points.chunks_exact(self.room).zip(self.used).map(|(part, used)| &part[..used]);
        if !self.overflow.is_empty() {
            let mut all: Vec<Point> = parts.flatten().copied().chain(self.overflow).collect();
            all.sort_by_key(|point| point.hash());
            all.into_iter().for_each(take);
            return;
        }
        let mut sorted = vec![Point(0); self.room];
        for part in parts {
            let sorted = &mut sorted[..part.len()];
            sort_part(part, sorted);
            sorted.iter().for_each(|point| take(*point));
        }
    }
}

/// The points of one part, sorted into their place.
fn sort_part(part: &[Point], place: &mut [Point]) {
    const BINS: usize = 1 << BIN_BITS;
    let bin = |point: &Point| (point.0 >> (64 - PART_BITS - BIN_BITS)) as usize % BINS;
    let mut ends = [0_u32; BINS];
    part.iter().for_each(|point| ends[bin(point)] += 1);
    let mut before = 0;
    for end in &mut ends {
        before += std::mem::replace(end, before);
    }
    for point in part {
        let end = &mut ends[bin(point)];
        place[*end as usize] = *point;
        *end += 1;
    }
    // One to a bin, mostly, and equal hashes stay in their order.
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
            assert_eq!((ring.hash(at), name_of(&ring, peers, at)), (*hash, name.as_str()), "point {at}");
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
        let (mut parts, mut sorted) = (Parts::new(100_000), Vec::new());
        (0..100_000).rev().for_each(|i| parts.put(Point::new(i / 2, i)));
        parts.in_order(&mut |point| sorted.push((point.hash(), point.0 as u32)));
        // Of equal ones the first stays first, which is the one with the larger number here.
        let expected: Vec<_> =
            (0..50_000).flat_map(|hash| [(hash, 2 * hash + 1), (hash, 2 * hash)]).collect();
        assert!(sorted == expected);
    }

    #[test]
    fn a_stretch_of_many_points_is_searched_to_its_end() {
        let mut packer = Packer::new(4096);
        let hashes: Vec<u32> =
            (0..100).map(|i| 0x1000_0000 + 3 * i).chain([0x1000_0001 << 1, u32::MAX]).collect();
        hashes.iter().for_each(|hash| packer.push(Point::new(*hash, 0)));
        let ring = packer.finish(Owners { endpoints: vec![vec![0]], single: true });
        for hash in [0, 0x0fff_ffff, 0x2000_0003, u32::MAX].into_iter().chain(0x0fff_fff0..0x1000_0200) {
            let expected = hashes.partition_point(|of| *of < hash) % hashes.len();
            assert_eq!(ring.find(hash), expected, "{hash:#x}");
        }
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
        let first = |name| Chain::new(name).four()[0];
        let of = |bytes: &[u8]| crc([bytes, &[0; 4]].concat());
        assert_eq!(first("a:80"), of(b"a\080"));
        assert_eq!(first("a"), of(b"a\0"));
        assert_eq!(first("a:b"), of(b"a:b\0"));
        assert_eq!(first("[::1]"), of(b"[::1]\0"));
        assert_eq!(first("unix:/run/a:1"), of(b"/run/a:1\0"));
    }
}
