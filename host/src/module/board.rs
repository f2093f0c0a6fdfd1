//! Where each thread of a worker is: inside which module, if any, in memory that the supervisor sees.
//!
//! A worker that dies or hangs inside a module cannot say so itself. So every thread that calls modules has a place on a
//! [`Board`], and leaves a crumb there while it is inside one: two relaxed stores a call, no clock, no lock. The supervisor
//! looks at the board (`supervisor::watchdog` times what does not move), and finds in it who was where when the worker
//! was gone; [`crash`](crate::module::crash) writes down which thread it was that died.
//!
//! Threads that serve also tick there, once a second and whether they are busy or idle, so that one that does not get on
//! is noticed outside of modules too (`supervisor::pulse`).
//!
//! A crumb is a u64. Its upper half counts the thread's calls, so that two calls of one module are told apart; its lower
//! half says which module and cluster it is, and is 0 outside of modules.
#![allow(unsafe_code, reason = "memory shared with another process")]

use std::cell::Cell;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Memory shared by a supervisor and one worker: a place for each thread that calls modules, and the record of the thread
/// that brought the worker down.
///
/// A module that writes wildly may write here. The words of a board may be wrong, and an index in it may be one that
/// the configuration does not have; but the memory itself can be neither cut nor grown.
#[derive(Debug)]
pub struct Board {
    memory: NonNull<BoardHead>,
    /// As this process knows it, and not as the memory says later.
    n_slots: usize,
    file: OwnedFd,
}

// SAFETY: all that is shared through the pointer are atomics; the mapping is this board's own until it is dropped.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

/// One thread's place as it was read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which place.
    pub slot: usize,
    /// The thread that took it, by the number that the system knows it by. Not checked.
    pub tid: u32,
    /// The call that it was inside of, if any.
    pub crumb: Option<Crumb>,
    /// The crumb as it stood there: the same value again is the same call.
    pub raw: u64,
    /// How often the thread has ticked; wraps around.
    pub tick: u32,
    /// Requests that the thread is serving.
    pub n_requests: u32,
}

/// The call that a thread is inside of. The indices are unchecked: use them by `get`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crumb {
    /// How long the call may take.
    pub kind: CallKind,
    /// Index in the configuration's list of modules.
    pub module: usize,
    /// Index in the configuration's list of clusters; absent while a module is loaded.
    pub cluster: Option<usize>,
    /// The module has called the host back, and is not to blame for the time that this takes. It is for a crash: what it
    /// handed over may be no text.
    pub in_host: bool,
}

/// The two kinds of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// A request waits for it, and with it all others of the thread.
    Serving,
    /// dlopen, info, build, save, and the drop of a balancer: work on all of a cluster, outside of requests.
    Long,
}

/// The thread that ended a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fatal {
    /// The thread's place, if it had one.
    pub slot: Option<usize>,
    /// The call that it was inside of, if any.
    pub crumb: Option<Crumb>,
    /// How it ended the worker.
    pub by: FatalCause,
    /// Address of the instruction that it came at; 0 where it is not known.
    pub ip: u64,
    /// The address that the system call which ended the process was to return to; 0 where it was none, or it is not known.
    pub caller: u64,
}

/// How a thread ended its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FatalCause {
    /// By this fatal signal.
    Signal(i32),
    /// It called `exit` inside a module.
    Exit,
    /// It closed descriptors of the host's inside a module, which the worker cannot do without.
    Closing,
}

/// Identity of a module and cluster in crumbs, made once for all calls of a balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleMark(u32);

/// The start of the memory. Slots follow.
#[repr(C, align(128))]
struct BoardHead {
    magic: AtomicU64,
    n_slots: AtomicU32,
    reserved: AtomicU32,
    /// 0, or who was first: the lower half of the crumb, then 16 bits of slot + 1, then 8 bits of what it did.
    fatal: AtomicU64,
    /// Where the signal came at, raw: what is mapped there is looked up by who reads it.
    fatal_ip: AtomicU64,
    fatal_caller: AtomicU64,
}

/// One thread's place. Two cache lines, because processors fetch lines in pairs, and the neighbour writes all the time.
#[repr(C, align(128))]
struct BoardSlot {
    crumb: AtomicU64,
    /// 0 where no thread has the place.
    tid: AtomicU32,
    tick: AtomicU32,
    n_requests: AtomicU32,
}

/// "trylist", and the version of what follows.
const MAGIC: u64 = u64::from_be_bytes(*b"trylist\x03");
/// Slots of the largest board: more threads than a worker can be told to have, and what 16 bits hold.
const MAX_SLOTS: usize = 4096;
const SLOTS: usize = size_of::<BoardHead>();

/// One call in a crumb's upper half.
const CALL: u64 = 1 << 32;
/// A crumb's lower half: cluster + 1, module + 1, and two flags.
const CLUSTER_BITS: u32 = 19;
const MODULE_BITS: u32 = 11;
const CLUSTER: u32 = (1 << CLUSTER_BITS) - 1;
const MODULE: u32 = (1 << MODULE_BITS) - 1;
const IN_HOST: u32 = 1 << 30;
const LONG: u32 = 1 << 31;

/// In place of a signal's number.
const EXIT: u8 = u8::MAX;
const CLOSING: u8 = u8::MAX - 1;

thread_local! {
    /// Without a destructor, so that a signal handler may read it at any time.
    static PLACE: Cell<Option<&'static BoardSlot>> = const { Cell::new(None) };
}

/// From now on the calling thread leaves its crumbs here. Threads without a place leave none. In a worker,
/// [`crash::take_place`](crate::module::crash::take_place) does this and more.
///
/// # Panics
///
/// The board has no such slot: it was made for fewer threads than there are.
pub fn take_place(board: &'static Board, slot: usize) {
    let place = board.slot(slot).expect("a board is made with a slot for each thread");
    // Somebody may have had the place before, in a process that builds several workers.
    place.crumb.store(0, Ordering::Relaxed);
    place.n_requests.store(0, Ordering::Relaxed);
    place.tid.store(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned(), Ordering::Relaxed);
    PLACE.set(Some(place));
}

/// The calling thread gives its place up: it ends, and no longer ticks.
pub(crate) fn leave_place() {
    if let Some(place) = PLACE.take() {
        place.tid.store(0, Ordering::Relaxed);
    }
}

/// Shows that the calling thread gets on, if it has a place. One store.
pub(crate) fn tick() {
    if let Some(place) = PLACE.get() {
        // Nobody else writes it.
        place.tick.store(place.tick.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// Shows that the calling thread serves one request more, until what this returns is dropped on the same thread.
pub(crate) fn serves() -> ServesGuard {
    let place = PLACE.get();
    if let Some(place) = place {
        // Nobody else writes it.
        place.n_requests.store(place.n_requests.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
    ServesGuard(place)
}

/// See [`serves`].
pub(crate) struct ServesGuard(Option<&'static BoardSlot>);

impl Drop for ServesGuard {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            place
                .n_requests
                .store(place.n_requests.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
        }
    }
}

/// Makes a call with this mark in the thread's place, if it has one.
#[inline(always)]
pub(crate) fn inside<R>(mark: ModuleMark, call: impl FnOnce() -> R) -> R {
    match PLACE.get() {
        None => call(),
        Some(slot) => {
            let before = slot.crumb.load(Ordering::Relaxed);
            let _left = slot.write((before & !u64::from(u32::MAX)).wrapping_add(CALL) | u64::from(mark.0), {
                // A module inside of which this was called is inside its call again afterwards.
                before.wrapping_add(CALL)
            });
            call()
        }
    }
}

/// Does something of the host's that a module called for: what it waits for there is not charged to the module.
pub(crate) fn in_host<R>(call: impl FnOnce() -> R) -> R {
    match PLACE.get() {
        None => call(),
        Some(slot) => {
            let before = slot.crumb.load(Ordering::Relaxed);
            let _left = slot.write(before | u64::from(IN_HOST), before);
            call()
        }
    }
}

impl BoardSlot {
    /// Writes a crumb now, and another one when what this returns is dropped.
    #[inline(always)]
    fn write(&'static self, now: u64, then: u64) -> CrumbGuard {
        self.crumb.store(now, Ordering::Relaxed);
        // The only other reader on this thread is a signal handler: the stores must stand around the call in the code.
        compiler_fence(Ordering::SeqCst);
        CrumbGuard { slot: self, then }
    }
}

/// A crumb to be written at the end of a call, also where it panics.
struct CrumbGuard {
    slot: &'static BoardSlot,
    then: u64,
}

impl Drop for CrumbGuard {
    #[inline(always)]
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        self.slot.crumb.store(self.then, Ordering::Relaxed);
    }
}

impl ModuleMark {
    /// Of what no supervisor wants to know.
    pub const NONE: Self = Self(0);

    /// Of a module, by its index in the configuration's list. Modules beyond the bits for it (2,047) are not marked.
    #[must_use]
    pub(crate) fn of_module(module: usize) -> Self {
        Self(field(module, MODULE) << CLUSTER_BITS)
    }

    /// The same, in a cluster, by its index in the configuration's list; what is beyond the bits for it (524,287 clusters) is
    /// left out.
    #[must_use]
    pub fn in_cluster(self, cluster: usize) -> Self {
        if self == Self::NONE { self } else { Self(self.0 & !CLUSTER | field(cluster, CLUSTER)) }
    }

    /// The same, for calls that may take long.
    #[must_use]
    pub fn long(self) -> Self {
        if self == Self::NONE { self } else { Self(self.0 | LONG) }
    }
}

/// An index as a field of a crumb, where 0 is "none".
fn field(idx: usize, max: u32) -> u32 {
    u32::try_from(idx).ok().and_then(|idx| idx.checked_add(1)).filter(|field| *field <= max).unwrap_or(0)
}

impl Crumb {
    /// Reads a crumb, or the lower half of one.
    fn read(raw: u64) -> Option<Self> {
        let low = raw as u32;
        let idx = |field: u32| (field as usize).checked_sub(1);
        Some(Self {
            kind: if low & LONG == 0 { CallKind::Serving } else { CallKind::Long },
            module: idx(low >> CLUSTER_BITS & MODULE)?,
            cluster: idx(low & CLUSTER),
            in_host: low & IN_HOST != 0,
        })
    }
}

impl Seen {
    /// Which call of the thread's it is: the same again, as long as it has not returned.
    pub fn call(&self) -> u64 {
        self.raw & !u64::from(IN_HOST)
    }
}

impl Board {
    /// Makes a board with places for that many threads.
    ///
    /// # Errors
    ///
    /// The system gives no memory, or there are too many.
    pub fn create(n_slots: usize) -> io::Result<Self> {
        if n_slots > MAX_SLOTS {
            return Err(invalid(format!("a board has {MAX_SLOTS} slots at most, {n_slots} are wanted")));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Never to be run; kernels before 6.3 do not know how to say so.
        let file = match memfd_create("trylist-board", flags | MemfdFlags::NOEXEC_SEAL) {
            Err(rustix::io::Errno::INVAL) => memfd_create("trylist-board", flags)?,
            other => other?,
        };
        ftruncate(&file, bytes(n_slots) as u64)?;
        fcntl_add_seals(&file, SIZE_SEALS | SealFlags::SEAL)?;
        let board = Self::map(file, n_slots)?;
        board.head().n_slots.store(n_slots as u32, Ordering::Relaxed);
        board.head().magic.store(MAGIC, Ordering::Relaxed);
        Ok(board)
    }

    /// Opens the board that another process made.
    ///
    /// # Errors
    ///
    /// It is no board.
    pub fn open(file: OwnedFd) -> io::Result<Self> {
        // A file that can shrink under the mapping would end the process when it does.
        if !fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SIZE_SEALS)) {
            return Err(invalid("no board: its size is not sealed"));
        }
        let size = usize::try_from(fstat(&file)?.st_size).unwrap_or(0);
        let n_slots = size.saturating_sub(SLOTS) / size_of::<BoardSlot>();
        if n_slots > MAX_SLOTS || bytes(n_slots) != size {
            return Err(invalid(format!("no board: {size} bytes")));
        }
        let board = Self::map(file, n_slots)?;
        let head = board.head();
        if head.magic.load(Ordering::Relaxed) != MAGIC {
            return Err(invalid("no board, or one of another version of trylist"));
        }
        if head.n_slots.load(Ordering::Relaxed) as usize != n_slots {
            return Err(invalid("a board that is not as large as it says"));
        }
        Ok(board)
    }

    fn map(file: OwnedFd, n_slots: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, which replaces none.
        let memory = unsafe { mmap(ptr::null_mut(), bytes(n_slots), access, MapFlags::SHARED, &file, 0)? };
        let memory = NonNull::new(memory.cast()).ok_or_else(|| invalid("memory at address 0"))?;
        Ok(Self { memory, n_slots, file })
    }

    /// How many places it has.
    pub(crate) fn n_slots(&self) -> usize {
        self.n_slots
    }

    /// The descriptor by which another process opens it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Reads the places of all threads.
    pub fn look(&self) -> Vec<Seen> {
        let seen = |slot| {
            let place = self.slot(slot)?;
            let tid = place.tid.load(Ordering::Relaxed);
            let raw = place.crumb.load(Ordering::Relaxed);
            let tick = place.tick.load(Ordering::Relaxed);
            let n_requests = place.n_requests.load(Ordering::Relaxed);
            (tid != 0).then(|| Seen { slot, tid, crumb: Crumb::read(raw), raw, tick, n_requests })
        };
        (0..self.n_slots).filter_map(seen).collect()
    }

    /// The culprit of the worker's end, if it was one of its threads and could still say so. Believe it where it fits the
    /// way that the process ended.
    pub(crate) fn fatal(&self) -> Option<Fatal> {
        let record = self.head().fatal.load(Ordering::Relaxed);
        let slot = (record >> 32 & 0xffff) as usize;
        Some(Fatal {
            slot: slot.checked_sub(1).filter(|slot| *slot < self.n_slots),
            crumb: Crumb::read(record),
            by: match (record >> 48) as u8 {
                0 => return None,
                EXIT => FatalCause::Exit,
                CLOSING => FatalCause::Closing,
                signal => FatalCause::Signal(signal.into()),
            },
            ip: self.head().fatal_ip.load(Ordering::Relaxed),
            caller: self.head().fatal_caller.load(Ordering::Relaxed),
        })
    }

    /// Whether a module has closed descriptors of the host's.
    pub fn has_closing(&self) -> bool {
        self.fatal().is_some_and(|fatal| fatal.by == FatalCause::Closing)
    }

    /// Writes down that the calling thread dies by this signal, which came at instruction `ip`, unless another one was first.
    /// To be called by a signal handler.
    pub(crate) fn record_signal(&self, signal: i32, ip: u64) {
        self.record(signal as u8, ip, 0);
    }

    /// Writes down that the calling thread ends the process, if it does so inside a module, or is no thread of the host's that has a
    /// place, or it is known who makes the system call: a destructor of a module may. The host ends its process from a thread that has
    /// a place. `ip` and `caller` are as in [`Fatal`].
    pub(crate) fn record_exit(&self, ip: u64, caller: u64) {
        let crumb = PLACE.get().map(|slot| Crumb::read(slot.crumb.load(Ordering::Relaxed)));
        if caller != 0 || crumb.is_none_or(|crumb| crumb.is_some()) {
            self.record(EXIT, ip, caller);
        }
    }

    /// Writes down that the module which the calling thread is inside of has closed descriptors of the host's.
    pub(crate) fn record_closing(&self) {
        self.record(CLOSING, 0, 0);
    }

    fn record(&self, what: u8, ip: u64, caller: u64) {
        let (slot, crumb) = PLACE.get().map_or((0, 0), |place| {
            let first = self.memory.as_ptr().addr() + SLOTS;
            let slot = (ptr::from_ref(place).addr().wrapping_sub(first)) / size_of::<BoardSlot>();
            // A place on another board is none on this one.
            let slot = if slot < self.n_slots { slot + 1 } else { 0 };
            (slot as u64, place.crumb.load(Ordering::Relaxed) & u64::from(u32::MAX))
        });
        let record = u64::from(what) << 48 | slot << 32 | crumb;
        // One word, so that there is no record of which half is missing. Where this fails, another was first.
        if self.head().fatal.compare_exchange(0, record, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.head().fatal_ip.store(ip, Ordering::Relaxed);
            self.head().fatal_caller.store(caller, Ordering::Relaxed);
        }
    }

    fn head(&self) -> &BoardHead {
        // SAFETY: mapped for as long as `self`, aligned as pages are, and all of it atomics.
        unsafe { self.memory.as_ref() }
    }

    fn slot(&self, slot: usize) -> Option<&BoardSlot> {
        if slot >= self.n_slots {
            return None;
        }
        // SAFETY: in the mapping, as `slot` is below what it was made for; else as above.
        Some(unsafe { &*self.memory.as_ptr().add(1).cast::<BoardSlot>().add(slot) })
    }
}

const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

const fn bytes(n_slots: usize) -> usize {
    SLOTS + n_slots * size_of::<BoardSlot>()
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and who has a place on it has it for ever.
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), bytes(self.n_slots)) };
    }
}

// A process of one version of trylist may look at the board of another.
const _: () = assert!(size_of::<BoardHead>() == 128 && offset_of!(BoardHead, fatal) == 16);
const _: () = assert!(
    size_of::<BoardSlot>() == 128 && offset_of!(BoardSlot, tid) == 8 && offset_of!(BoardSlot, tick) == 12
);

#[cfg(test)]
mod tests {
    use super::*;

    /// A board, and the same one as a worker has it.
    fn boards(n_slots: usize) -> (Board, &'static Board) {
        let board = Board::create(n_slots).unwrap();
        let opened = Board::open(board.fd().try_clone_to_owned().unwrap()).unwrap();
        (board, Box::leak(Box::new(opened)))
    }

    /// Runs on a thread of its own, which has no place before and takes none along.
    fn on_a_thread<R: Send + 'static>(run: impl FnOnce() -> R + Send + 'static) -> R {
        std::thread::spawn(run).join().unwrap()
    }

    fn serving(module: usize, cluster: usize) -> Option<Crumb> {
        Some(Crumb { kind: CallKind::Serving, module, cluster: Some(cluster), in_host: false })
    }

    #[test]
    fn what_a_thread_is_inside_of_is_seen_from_the_other_side_as_long_as_it_is() {
        let (board, worker) = boards(3);
        on_a_thread(move || {
            assert_eq!(board.look(), [], "nobody is there yet");
            take_place(worker, 1);
            let before = board.look();
            assert_eq!(before.len(), 1);
            assert_eq!((before[0].slot, before[0].crumb), (1, None));
            assert_eq!(before[0].tid, rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned());

            let mark = ModuleMark::of_module(0).in_cluster(7);
            let during = inside(mark, || board.look())[0];
            assert_eq!(during.crumb, serving(0, 7));
            assert_eq!(board.look()[0].crumb, None);
            let again = inside(mark, || board.look())[0];
            assert_eq!(again.crumb, during.crumb);
            assert_ne!(again.call(), during.call(), "another call");
        });
    }

    #[test]
    fn loading_and_building_are_long() {
        let (board, worker) = boards(1);
        on_a_thread(move || {
            take_place(worker, 0);
            let seen = |mark| inside(mark, || board.look())[0].crumb;
            let long = |cluster| Some(Crumb { kind: CallKind::Long, module: 4, cluster, in_host: false });
            assert_eq!(seen(ModuleMark::of_module(4).long()), long(None));
            assert_eq!(seen(ModuleMark::of_module(4).long().in_cluster(0)), long(Some(0)));
        });
    }

    #[test]
    fn a_call_within_a_call_goes_back_to_the_outer_one() {
        let (board, worker) = boards(1);
        on_a_thread(move || {
            take_place(worker, 0);
            inside(ModuleMark::of_module(1).in_cluster(1), || {
                inside(ModuleMark::of_module(2).in_cluster(2), || {
                    assert_eq!(board.look()[0].crumb, serving(2, 2));
                });
                assert_eq!(board.look()[0].crumb, serving(1, 1));
            });
            assert_eq!(board.look()[0].crumb, None);
        });
    }

    #[test]
    fn a_call_that_goes_back_into_the_host_is_the_same_call() {
        let (board, worker) = boards(1);
        on_a_thread(move || {
            take_place(worker, 0);
            inside(ModuleMark::of_module(1), || {
                let (before, during) = (board.look()[0], in_host(|| board.look()[0]));
                assert_eq!(before.call(), during.call());
                assert!(during.crumb.unwrap().in_host && !before.crumb.unwrap().in_host);
                assert_eq!(board.look()[0], before);
            });
        });
    }

    #[test]
    fn a_call_that_panics_has_ended() {
        let (board, worker) = boards(1);
        on_a_thread(move || {
            take_place(worker, 0);
            let panics = || inside(ModuleMark::of_module(1), || std::panic::resume_unwind(Box::new(())));
            assert!(std::panic::catch_unwind(panics).is_err());
            assert_eq!(board.look()[0].crumb, None);
        });
    }

    #[test]
    fn what_has_no_room_in_a_crumb_is_no_other_module() {
        let crumb = |mark: ModuleMark| Crumb::read(mark.0.into());
        let last = ModuleMark::of_module(2046).in_cluster(524_286);
        assert_eq!(crumb(last), serving(2046, 524_286));
        assert_eq!(ModuleMark::of_module(2047).in_cluster(1).long(), ModuleMark::NONE);
        assert_eq!(ModuleMark::of_module(usize::MAX), ModuleMark::NONE);
        assert_eq!(crumb(ModuleMark::of_module(1).in_cluster(524_287)).unwrap().cluster, None);
    }

    #[test]
    fn the_count_of_calls_wraps_without_touching_the_rest() {
        let (board, worker) = boards(1);
        on_a_thread(move || {
            take_place(worker, 0);
            PLACE.get().unwrap().crumb.store(u64::MAX << 32, Ordering::Relaxed);
            assert_eq!(
                inside(ModuleMark::of_module(3).in_cluster(5), || board.look())[0].crumb,
                serving(3, 5)
            );
            assert_eq!(board.look()[0].raw, 0);
        });
    }

    #[test]
    fn requests_of_a_thread_are_counted_while_they_are_served() {
        let (board, worker) = boards(1);
        on_a_thread(move || {
            let before = serves();
            take_place(worker, 0);
            let n = || board.look()[0].n_requests;
            let (first, second) = (serves(), serves());
            assert_eq!(n(), 2);
            drop((first, before));
            assert_eq!(n(), 1, "what began without a place was not counted");
            drop(second);
            assert_eq!(n(), 0);
        });
    }

    #[test]
    fn a_thread_ticks_until_it_leaves_its_place() {
        let (board, worker) = boards(2);
        on_a_thread(move || {
            tick();
            take_place(worker, 1);
            let seen = || board.look().first().map(|seen| (seen.slot, seen.tick));
            assert_eq!(seen(), Some((1, 0)), "without a place there is nothing to show");
            worker.slot(1).unwrap().tick.store(u32::MAX, Ordering::Relaxed);
            tick();
            assert_eq!(seen(), Some((1, 0)));
            tick();
            assert_eq!(seen(), Some((1, 1)));
            leave_place();
            assert_eq!(seen(), None);
        });
    }

    #[test]
    fn the_first_to_die_is_the_one_on_record() {
        let (board, worker) = boards(2);
        assert_eq!(board.fatal(), None);
        on_a_thread(move || {
            take_place(worker, 1);
            worker.record_exit(0, 0);
            assert_eq!(board.fatal(), None, "the host may end its process");
            inside(ModuleMark::of_module(6).in_cluster(2), || worker.record_exit(0, 0));
            let first =
                Some(Fatal { slot: Some(1), crumb: serving(6, 2), by: FatalCause::Exit, ip: 0, caller: 0 });
            assert_eq!(board.fatal(), first);
            worker.record_signal(11, 0x1234);
            assert_eq!(board.fatal(), first);
        });
    }

    #[test]
    fn a_thread_without_a_place_dies_inside_of_nothing() {
        let (board, worker) = boards(2);
        on_a_thread(move || worker.record_exit(0, 0));
        let fatal = Fatal { slot: None, crumb: None, by: FatalCause::Exit, ip: 0, caller: 0 };
        assert_eq!(board.fatal(), Some(fatal));
        let (board, worker) = boards(2);
        on_a_thread(move || worker.record_signal(6, 0x1234));
        let fatal = Fatal { slot: None, crumb: None, by: FatalCause::Signal(6), ip: 0x1234, caller: 0 };
        assert_eq!(board.fatal(), Some(fatal));
    }

    #[test]
    fn rubbish_on_a_board_is_read_without_harm() {
        let (board, worker) = boards(2);
        let ones = |bits: &AtomicU64| bits.store(u64::MAX, Ordering::Relaxed);
        ones(&worker.head().fatal);
        worker.head().n_slots.store(u32::MAX, Ordering::Relaxed);
        for slot in 0..2 {
            ones(&worker.slot(slot).unwrap().crumb);
            worker.slot(slot).unwrap().tid.store(u32::MAX, Ordering::Relaxed);
        }
        assert_eq!(board.look().len(), 2);
        let fatal = board.fatal().unwrap();
        assert_eq!((fatal.slot, fatal.crumb.unwrap().module), (None, 2046));
        // A cluster without a module is no crumb.
        worker.slot(0).unwrap().crumb.store(CALL | 1, Ordering::Relaxed);
        assert_eq!(board.look()[0].crumb, None);
    }

    #[test]
    fn what_is_no_board_is_refused() {
        let refusal = |file: OwnedFd| Board::open(file).unwrap_err().to_string();
        let memory = |size: u64, seals: SealFlags| {
            let file = memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
            ftruncate(&file, size).unwrap();
            fcntl_add_seals(&file, seals).unwrap();
            file
        };
        assert_eq!(
            refusal(std::fs::File::open("/dev/null").unwrap().into()),
            "no board: its size is not sealed"
        );
        assert_eq!(refusal(memory(256, SealFlags::GROW)), "no board: its size is not sealed");
        assert_eq!(refusal(memory(0, SIZE_SEALS)), "no board: 0 bytes");
        assert_eq!(refusal(memory(300, SIZE_SEALS)), "no board: 300 bytes");
        assert_eq!(refusal(memory(1 << 40, SIZE_SEALS)), "no board: 1099511627776 bytes");
        assert_eq!(refusal(memory(256, SIZE_SEALS)), "no board, or one of another version of trylist");
        let board = Board::create(2).unwrap();
        board.head().n_slots.store(3, Ordering::Relaxed);
        let refused = refusal(board.fd().try_clone_to_owned().unwrap());
        assert_eq!(refused, "a board that is not as large as it says");
        assert!(Board::create(MAX_SLOTS + 1).is_err());
    }

    #[test]
    fn a_board_cannot_be_cut_short_under_who_looks_at_it() {
        let board = Board::create(1).unwrap();
        assert!(ftruncate(board.fd(), 0).is_err());
    }
}
