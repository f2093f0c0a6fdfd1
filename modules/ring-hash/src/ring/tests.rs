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

    fn find(&self, hash: u32) -> u32 {
        self.0[self.0.partition_point(|(of, _)| *of < hash) % self.0.len()].0
    }
}

/// CRC-32 bit by bit.
fn crc(bytes: Vec<u8>) -> u32 {
    let step = |crc: u32, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
    !bytes.into_iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(byte), step))
}

fn name_of<'a>(ring: &Ring, peers: &[(&'a str, u32)], point: Point) -> &'a str {
    match ring.owner(point) {
        Owner::One(endpoint) => peers[endpoint].0,
        Owner::Several(endpoints) => peers[endpoints[0] as usize].0,
    }
}

fn compare(peers: &[(&str, u32)], seed: u64) {
    let (ring, nginx) = (Ring::new(peers), Nginx::new(peers));
    let mut point = ring.find(0);
    for (hash, name) in &nginx.0 {
        assert_eq!((ring.hash(point), name_of(&ring, peers, point)), (*hash, name.as_str()));
        point = ring.behind(point);
    }
    assert_eq!(point, ring.find(0), "the first is behind the last");
    let mut rng = Rng::new(seed);
    let drawn = (0..2000).map(|_| rng.bits() as u32);
    let edges = nginx.0.iter().step_by(nginx.0.len().div_ceil(2000)).map(|(hash, _)| *hash);
    let edges = edges.flat_map(|hash| [hash.wrapping_sub(1), hash, hash.wrapping_add(1)]);
    for hash in drawn.chain(edges).chain([0, 1, u32::MAX]) {
        let expected = nginx.find(hash);
        assert_eq!(ring.hash(ring.find(hash)), expected, "hash {hash:#x} of {peers:?}");
    }
}

#[test]
fn has_nginx_s_points() {
    compare(&[("a.example", 1)], 1);
    compare(&[("10.0.0.1:8080", 1), ("10.0.0.2:8080", 3), ("b.example:80", 2)], 2);
    compare(&[("[::1]:8080", 1), ("[::1]:8081", 1)], 3);
}

#[test]
fn a_large_ring_is_that_of_a_small_one() {
    let names: Vec<String> = (0..500).map(|i| format!("10.1.{}.{}:80", i / 250, i % 250)).collect();
    let peers: Vec<(&str, u32)> =
        names.iter().map(|name| (name.as_str(), 1 + name.len() as u32 % 3)).collect();
    assert!(!Ring::new(&peers).more.is_empty(), "some lines are too small");
    compare(&peers, 4);
}

#[test]
fn a_line_that_overflows_loses_no_point() {
    let mut packer = Packer::new(4096);
    // Two hundred of one line, from the last to the first, two of each hash; and the last hash there is.
    let hashes: Vec<u32> = (0..100).map(|i| 0x1000_0000 + 3 * i).chain([0x2000_0002, u32::MAX]).collect();
    hashes.iter().rev().for_each(|hash| [1, 0].into_iter().for_each(|owner| packer.put(*hash, owner)));
    let ring = packer.finish(Owners { endpoints: vec![vec![0], vec![1]], single: true, ..Owners::default() });
    assert_eq!(ring.len(), 2 * hashes.len());
    for hash in [0, 0x0fff_ffff, 0x2000_0003, u32::MAX].into_iter().chain(0x0fff_fff0..0x1000_0200) {
        let expected = hashes[hashes.partition_point(|of| *of < hash) % hashes.len()];
        let found = ring.find(hash);
        assert_eq!((ring.hash(found), ring.owner(found)), (expected, Owner::One(0)), "{hash:#x}");
    }
    let mut rng = Rng::new(7);
    let drawn: std::collections::BTreeSet<_> = (0..10_000).map(|_| ring.hash(ring.draw(&mut rng))).collect();
    assert!(drawn.into_iter().eq(hashes));
}

#[test]
fn endpoints_of_one_name_share_its_points() {
    let peers = [("a:1", 1), ("b:1", 2), ("a:1", 3), ("a:1", 2)];
    compare(&peers, 5);
    let ring = Ring::new(&peers);
    let points =
        std::iter::successors(Some(ring.find(0)), |point| Some(ring.behind(*point))).take(ring.len());
    let several = points.filter_map(|point| match ring.owner(point) {
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

#[test]
fn a_ring_made_from_the_one_before_is_the_ring_made_anew() {
    let mut rng = Rng::new(16);
    let name = |n: u64| format!("10.0.{}.{}:8080", n / 250, n % 250);
    let mut members: Vec<(String, u32)> = (0..60).map(|n| (name(n), 1 + n as u32 % 3)).collect();

    let ring = |members: &[(String, u32)], before: Option<&Ring>| {
        let named: Vec<(&str, u32)> = members.iter().map(|(name, weight)| (&**name, *weight)).collect();
        before.map_or_else(|| Ring::new(&named), |before| Ring::after(before, &named))
    };
    let mut before = ring(&members, None);
    for round in 0..60 {
        let at = rng.below(members.len() as u64) as usize;
        match rng.below(5) {
            0 => members.insert(at, (name(100 + round), 1 + rng.below(4) as u32)),
            1 => drop(members.remove(at)),
            2 => members.rotate_left(at),
            // A name twice is one owner.
            3 => members.push((members[at].0.clone(), 1 + rng.below(4) as u32)),
            _ => members[at].1 = 1 + rng.below(5) as u32,
        }
        let (after, new) = (ring(&members, Some(&before)), ring(&members, None));
        assert_eq!(after.len(), new.len(), "round {round}");
        for _ in 0..2_000 {
            let hash = rng.bits() as u32;
            let (mut one, mut other) = (after.find(hash), new.find(hash));
            for _ in 0..3 {
                assert_eq!(
                    (after.owner(one), after.hash(one)),
                    (new.owner(other), new.hash(other)),
                    "round {round}"
                );
                (one, other) = (after.behind(one), new.behind(other));
            }
        }
        before = after;
    }
}
