//! The ring itself: points of all servers in order, and the first at or behind a hash.

use std::collections::HashMap;

use crc32fast::Hasher;
use lb_api::Rng;
use lb_api::pick::large_vec;

/// Points of a server for each unit of its weight, as nginx and all other ketamas have it.
pub(crate) const POINTS: u64 = 160;

/// The ring in lines of memory, which say all that a look at it has to know.
///
/// A look into a large ring costs memory that no near cache holds, so it reads one cache line. The hashes of a ring
/// are even enough to be parted into stretches of so many points that nearly each has room in one, in any order: the
/// nearest point is found without a branch that depends on the hash, which would be mispredicted every other time. Which
/// line a point is in says the upper part of its hash, so that the lower one and its owner fit into 32 bits: there are
/// more lines than owners. That makes 8 bytes a point.
#[derive(Debug)]
pub(crate) struct Ring {
    lines: Box<[Line]>,
    /// Line and slot of the points that found theirs full, in order.
    more: Box<[(u32, u32)]>,
    /// Points, those of equal hashes each for itself.
    len: usize,
    /// Bits of a slot that say the owner; the others are the hash's, as in a [`Place`].
    owner_mask: u32,
    owners: Owners,
}

/// Points of one stretch of the ring: a hash's lower part above, the owner below, or [`EMPTY`].
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Line([u32; SLOTS]);

const SLOTS: usize = 16;

/// No owner has all its bits set.
const EMPTY: u32 = u32::MAX;

/// Points for each line. Of 270 lines one is too many for its slots then.
const MEAN: usize = 8;

/// A hash times the number of lines: the line in the upper half, and where in its stretch in the lower.
///
/// Two hashes are as many apart as there are lines, so that the bits below that number's highest one say nothing: they are 0
/// here, and an owner has room in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

/// A point: its place, with its owner in the lower bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point(u64);

/// An owner of points: a server name, which is one endpoint or, where a name stands for several addresses, several.
#[derive(Debug, Default)]
struct Owners {
    /// The endpoints of each owner, in order.
    endpoints: Vec<Vec<u32>>,
    /// Whether every owner is one endpoint, and they are in the same order.
    single: bool,
    /// Name and number of points of each owner, for the ring that follows.
    names: Vec<Box<str>>,
    points: Vec<u64>,
}

/// Endpoints that share a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner<'a> {
    One(usize),
    Several(&'a [u32]),
}

impl Ring {
    /// The ring of endpoints with these names (as written: host, and port where there is one) and weights, one at least.
    pub(crate) fn new(endpoints: &[(&str, u32)]) -> Self {
        let len = endpoints.iter().map(|(_, weight)| u64::from(*weight) * POINTS).sum::<u64>() as usize;
        let (owners, chains) = owners(endpoints);
        let mut packer = Packer::new(len);
        chains.each(|hash, owner| packer.put(hash, owner));
        packer.finish(owners)
    }

    /// The same ring, made from one whose points stay for the most part: those of owners that have the same name and number of
    /// points are taken over line by line, the others are put in. Where too many differ it is made anew.
    pub(crate) fn after(before: &Self, endpoints: &[(&str, u32)]) -> Self {
        let len = endpoints.iter().map(|(_, weight)| u64::from(*weight) * POINTS).sum::<u64>() as usize;
        let n_lines = before.lines.len();
        // Lines that are too full or too empty make looks slow, and there are to be more of them than owners.
        if !(n_lines * (MEAN - 1)..=n_lines * (MEAN + 1)).contains(&len) {
            return Self::new(endpoints);
        }
        let (owners, _) = owners(endpoints);
        let places: HashMap<&str, usize> = owners.names.iter().map(|name| &**name).zip(0..).collect();
        let mut is_new = vec![true; owners.names.len()];
        let stays = before.owners.names.iter().zip(&before.owners.points).map(|(name, points)| {
            let owner = places.get(&**name).copied().filter(|owner| owners.points[*owner] == *points);
            owner.map_or(EMPTY, |owner| {
                is_new[owner] = false;
                owner as u32
            })
        });
        let stays: Vec<u32> = stays.collect();
        let mut packer = Packer::with_lines(n_lines);
        let mask = before.owner_mask;
        let moved = |slot: u32| match stays[(slot & mask) as usize] {
            EMPTY => None,
            owner => Some((slot & !mask) | owner),
        };
        for ((to, used), from) in packer.lines.iter_mut().zip(&mut packer.used).zip(&before.lines) {
            for slot in from.0.iter().take_while(|slot| **slot != EMPTY) {
                if let Some(slot) = moved(*slot) {
                    to.0[usize::from(*used)] = slot;
                    *used += 1;
                }
            }
        }
        for (line, slot) in &before.more {
            if let Some(slot) = moved(*slot) {
                packer.put_slot(*line as usize, slot);
            }
        }
        for owner in (0..is_new.len()).filter(|owner| is_new[*owner]) {
            let mut chain = Chain::new(&owners.names[owner]);
            while chain.len < owners.points[owner] {
                chain.four().into_iter().for_each(|hash| packer.put(hash, owner as u32));
            }
        }
        packer.finish(owners)
    }

    /// How many points there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first point at or behind this hash, beginning anew behind the last; of those of equal hashes that of the
    /// first owner.
    #[inline]
    pub(crate) fn find(&self, hash: u32) -> Point {
        self.at_or_behind(self.place(hash))
    }

    /// The point behind this one, which has another hash.
    #[inline]
    pub(crate) fn behind(&self, point: Point) -> Point {
        self.at_or_behind(Place((point.0 | u64::from(self.owner_mask)) + 1))
    }

    /// A point drawn at random, each as probable as the others.
    pub(crate) fn draw(&self, rng: &mut Rng) -> Point {
        let slots = self.lines.len() * SLOTS;
        loop {
            let drawn = rng.below((slots + self.more.len()) as u64) as usize;
            let (line, slot) = match drawn.checked_sub(slots) {
                None => ((drawn / SLOTS) as u32, self.lines[drawn / SLOTS].0[drawn % SLOTS]),
                Some(more) => self.more[more],
            };
            if slot != EMPTY {
                return Point(u64::from(line) << 32 | u64::from(slot));
            }
        }
    }

    /// Owner of this point.
    #[inline]
    pub(crate) fn owner(&self, point: Point) -> Owner<'_> {
        let owner = point.0 as u32 & self.owner_mask;
        if self.owners.single {
            return Owner::One(owner as usize);
        }
        match self.owners.endpoints[owner as usize].as_slice() {
            [endpoint] => Owner::One(*endpoint as usize),
            endpoints => Owner::Several(endpoints),
        }
    }

    /// The hash that put this point where it is.
    pub(crate) fn hash(&self, point: Point) -> u32 {
        (point.0 & !u64::from(self.owner_mask)).div_ceil(self.lines.len() as u64) as u32
    }

    #[inline]
    fn place(&self, hash: u32) -> Place {
        let place = u64::from(hash) * self.lines.len() as u64;
        Place(place & !u64::from(self.owner_mask))
    }

    #[inline]
    fn at_or_behind(&self, Place(mut place): Place) -> Point {
        loop {
            let line = (place >> 32) as usize;
            let Some(slots) = self.lines.get(line) else {
                place = 0;
                continue;
            };
            if let Some(slot) = self.nearest(line, slots, place as u32) {
                return Point((line as u64) << 32 | u64::from(slot));
            }
            place = (line as u64 + 1) << 32;
        }
    }

    /// The first of a line at or behind `low`.
    #[inline]
    fn nearest(&self, line: usize, Line(slots): &Line, low: u32) -> Option<u32> {
        // A distance before `low` wraps around to more than an empty slot makes.
        let distance = slots.iter().fold(EMPTY, |nearest, slot| nearest.min(slot.wrapping_sub(low)));
        let found = Some(distance).filter(|distance| *distance < EMPTY - low).map(|distance| low + distance);
        if slots[SLOTS - 1] == EMPTY { found } else { self.nearest_of_more(line, found, low) }
    }

    #[cold]
    fn nearest_of_more(&self, line: usize, found: Option<u32>, low: u32) -> Option<u32> {
        let from = self.more.partition_point(|point| *point < (line as u32, low));
        let more = self.more.get(from).filter(|(of, _)| *of as usize == line).map(|(_, slot)| *slot);
        found.into_iter().chain(more).min()
    }
}

/// Makes a ring of points in any order.
struct Packer {
    lines: Vec<Line>,
    /// Slots used of each. Beside the lines, so that a near cache tells where a point goes, and nobody waits for its line.
    used: Vec<u8>,
    more: Vec<(u32, u32)>,
    owner_mask: u32,
}

impl Packer {
    fn new(points: usize) -> Self {
        Self::with_lines(points.div_ceil(MEAN))
    }

    fn with_lines(len: usize) -> Self {
        let mut lines = large_vec(len);
        lines.resize(len, Line([EMPTY; SLOTS]));
        Self { lines, used: vec![0; len], more: Vec::new(), owner_mask: (1 << len.ilog2()) - 1 }
    }

    /// Puts a point into its line.
    #[inline]
    fn put(&mut self, hash: u32, owner: u32) {
        let place = u64::from(hash) * self.lines.len() as u64;
        let (line, low) = ((place >> 32) as usize, place as u32);
        self.put_slot(line, (low & !self.owner_mask) | owner);
    }

    #[inline]
    fn put_slot(&mut self, line: usize, slot: u32) {
        let used = &mut self.used[line];
        match self.lines[line].0.get_mut(usize::from(*used)) {
            Some(free) => {
                *free = slot;
                *used += 1;
            }
            None => self.more.push((line as u32, slot)),
        }
    }

    fn finish(mut self, owners: Owners) -> Ring {
        self.more.sort_unstable();
        let len = self.used.iter().map(|used| usize::from(*used)).sum::<usize>() + self.more.len();
        Ring { lines: self.lines.into(), more: self.more.into(), len, owner_mask: self.owner_mask, owners }
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

/// This CRC after 16 more bytes 0.
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
    fn each(mut self, mut take: impl FnMut(u32, u32)) {
        for (owner, len) in self.of_endpoint {
            let chain = &mut self.of_owner[owner];
            while chain.len < len {
                chain.four().into_iter().for_each(|hash| take(hash, owner as u32));
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
            owners.names.push((*name).into());
            owners.points.push(0);
            chains.of_owner.push(Chain::new(name));
        }
        owners.endpoints[owner].push(idx as u32);
        owners.points[owner] = owners.points[owner].max(u64::from(*weight) * POINTS);
        chains.of_endpoint.push((owner, u64::from(*weight) * POINTS));
    }
    owners.single = owners.endpoints.len() == endpoints.len();
    (owners, chains)
}

#[cfg(test)]
mod tests;
