//! [`SimDisk`]: a disk in memory that loses, tears and reorders what was not flushed, on purpose.
//!
//! It keeps for every file what programs see (*live*) and what survives a power cut (*durable*), and knows
//! the *units* in between: 512-byte sectors of writes that have not finished, and directory entries that
//! were not flushed. A power cut keeps any subset of the units: [`SimDisk::after_power_cut`] builds the disk
//! that is left.
//!
//! It brings its own executor ([`SimDisk::run`]) and clock, so that a run is a function of its seed: when
//! no task can go on, one unfinished operation finishes (the oldest, or one drawn from the seed); when
//! there is none, the clock moves to the next sleeper.
//!
//! Invariants:
//! - A sector is never torn: all of it is old or all of it is new.
//! - The same seed and the same calls give the same run.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    future::{Future, poll_fn},
    io,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use crate::{
    disk::{Disk, Entry, Urgency},
    sim_names::{NameChange, Named, Names},
};

/// What a power cut keeps or loses as a whole, in bytes.
pub const SECTOR_BYTES: usize = 512;

/// A fault for one operation to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The write fails after this many of its bytes have reached the disk.
    WriteError {
        /// Bytes that reached the disk.
        kept: usize,
    },
    /// The write claims success and nothing is written.
    LostWrite,
    /// The write claims success and lands this many bytes further on.
    MisdirectedWrite(u64),
    /// The read fails.
    ReadError,
    /// The flush of a file or directory fails.
    FlushError,
}

impl Fault {
    fn concerns(self, operation: Operation) -> bool {
        match self {
            Self::WriteError { .. } | Self::LostWrite | Self::MisdirectedWrite(_) => {
                operation == Operation::Write
            }
            Self::ReadError => operation == Operation::Read,
            Self::FlushError => operation == Operation::Flush,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Flush,
}

/// A simulated disk; clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(pub(crate) Rc<RefCell<Sim>>);

pub(crate) struct Sim {
    pub(crate) inodes: BTreeMap<u64, Inode>,
    pub(crate) live: Names,
    durable: Names,
    pub(crate) unsynced: Vec<NameChange>,
    pub(crate) next_inode: u64,
    in_flight: Vec<Unfinished>,
    next_operation: u64,
    pub(crate) finished: u64,
    pub(crate) power_cut_at: Option<u64>,
    pub(crate) powerless: bool,
    held: bool,
    reorder: bool,
    faults: VecDeque<(u64, Fault)>,
    counted: BTreeMap<u8, u64>,
    available: u64,
    random: u64,
    now: Duration,
    sleepers: Vec<(Duration, Waker)>,
    locks: BTreeSet<PathBuf>,
    last_urgency: Option<Urgency>,
    tasks: Vec<Task>,
    /// The last finished writes, by file and offset.
    last_writes: VecDeque<(u64, usize)>,
}

/// How many finished writes are remembered.
const LAST_WRITES: usize = 8;

#[derive(Clone, Default)]
pub(crate) struct Inode {
    pub(crate) live: Rc<Vec<u8>>,
    pub(crate) durable: Rc<Vec<u8>>,
    /// Sectors of `live` that a blocking writer has not flushed.
    pub(crate) dirty: BTreeSet<usize>,
}

struct Unfinished {
    id: u64,
    work: Work,
    result: Option<io::Result<()>>,
    waker: Option<Waker>,
}

enum Work {
    Write {
        inode: u64,
        offset: usize,
        bytes: Vec<u8>,
    },
    Create {
        inode: u64,
        bytes: usize,
    },
    SyncDir {
        dir: PathBuf,
    },
    Other,
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    woken: Arc<Woken>,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimFile(u64);

/// A held lock file.
pub struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.0.borrow_mut().locks.remove(&self.path);
    }
}

impl SimDisk {
    /// An empty disk with plenty of space whose operations finish in order.
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Sim {
            inodes: BTreeMap::new(),
            live: Names::default(),
            durable: Names::default(),
            unsynced: Vec::new(),
            next_inode: 1,
            in_flight: Vec::new(),
            next_operation: 1,
            finished: 0,
            power_cut_at: None,
            powerless: false,
            held: false,
            reorder: false,
            faults: VecDeque::new(),
            counted: BTreeMap::new(),
            available: 1 << 40,
            random: seed,
            now: Duration::ZERO,
            sleepers: Vec::new(),
            locks: BTreeSet::new(),
            last_urgency: None,
            tasks: Vec::new(),
            last_writes: VecDeque::new(),
        })))
    }

    /// Lets operations in flight finish in an order drawn from the seed.
    pub fn reorder(&self) {
        self.0.borrow_mut().reorder = true;
    }

    /// Cuts the power instead of finishing the operation with this number (see [`SimDisk::finished`]).
    pub fn cut_power_at(&self, operation: u64) {
        self.0.borrow_mut().power_cut_at = Some(operation);
    }

    /// Whether the power is cut.
    pub fn is_powerless(&self) -> bool {
        self.0.borrow().powerless
    }

    /// How many operations that change something have finished.
    pub fn finished(&self) -> u64 {
        self.0.borrow().finished
    }

    /// While held, no operation in flight finishes: what waits for one waits.
    pub fn hold_completions(&self, held: bool) {
        self.0.borrow_mut().held = held;
    }

    /// How many operations are in flight.
    pub fn in_flight(&self) -> usize {
        self.0
            .borrow()
            .in_flight
            .iter()
            .filter(|io| io.result.is_none())
            .count()
    }

    /// Makes the `after`-th operation from now of the kind that `fault` concerns fail so; 0 is the next.
    pub fn inject(&self, after: u64, fault: Fault) {
        let mut sim = self.0.borrow_mut();
        let done = sim
            .counted
            .get(&(fault.operation() as u8))
            .copied()
            .unwrap_or(0);
        sim.faults.push_back((done + after, fault));
    }

    /// Sets the free space in bytes.
    pub fn set_available(&self, bytes: u64) {
        self.0.borrow_mut().available = bytes;
    }

    /// How urgent the file that was made last was when it was begun.
    pub fn last_urgency(&self) -> Option<Urgency> {
        self.0.borrow().last_urgency
    }

    /// The content of a file, or `None` when there is none of that name.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let sim = self.0.borrow();
        let inode = sim.live.files.get(path)?;
        Some(sim.inodes.get(inode)?.live.to_vec())
    }

    /// File and offset of the last write that finished in a file whose name begins so.
    pub fn last_write(&self, name: &str) -> Option<(PathBuf, usize)> {
        let sim = self.0.borrow();
        let is_named = |path: &Path| path.file_name()?.to_str()?.starts_with(name).then_some(());
        let mut writes = sim.last_writes.iter().rev();
        writes.find_map(|(inode, offset)| {
            let mut names = sim.live.files.iter();
            let (path, _) = names.find(|(path, of)| *of == inode && is_named(path).is_some())?;
            Some((path.clone(), *offset))
        })
    }

    /// Changes a file's bytes behind everybody's back.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut sim = self.0.borrow_mut();
        let inode = sim.live.files.get(path).copied().expect("a file to damage");
        let inode = sim.inodes.get_mut(&inode).expect("a name has an inode");
        change(Rc::make_mut(&mut inode.live));
        inode.durable = Rc::clone(&inode.live);
    }

    /// The names of all files.
    pub fn files(&self) -> Vec<PathBuf> {
        self.0.borrow().live.files.keys().cloned().collect()
    }

    /// How many units a power cut now may keep or lose.
    pub fn unflushed(&self) -> usize {
        self.0.borrow().units().len()
    }

    /// The disk that a power cut now leaves: `keeps` says for each unit whether it had reached the disk.
    /// The new disk has power, no faults and no locks.
    pub fn after_power_cut(&self, mut keeps: impl FnMut(usize) -> bool) -> Self {
        let sim = self.0.borrow();
        let after = Self::new(sim.random);
        let mut left = after.0.borrow_mut();
        left.next_inode = sim.next_inode;
        left.available = sim.available;
        left.durable.clone_from(&sim.durable);
        left.inodes.clone_from(&sim.inodes);
        for (index, unit) in sim.units().into_iter().enumerate() {
            if !keeps(index) {
                continue;
            }
            match unit {
                Unit::Bytes {
                    inode,
                    offset,
                    bytes,
                } => {
                    if let Some(inode) = left.inodes.get_mut(&inode) {
                        overwrite(Rc::make_mut(&mut inode.durable), offset, &bytes);
                    }
                }
                Unit::Name(change) => change.apply(&mut left.durable),
            }
        }
        left.live = left.durable.clone();
        let named: BTreeSet<u64> = left.live.files.values().copied().collect();
        left.inodes.retain(|inode, _| named.contains(inode));
        for inode in left.inodes.values_mut() {
            inode.live = Rc::clone(&inode.durable);
            inode.dirty.clear();
        }
        drop(left);
        after
    }

    /// Runs `main` and the tasks spawned so far until `main` has finished, or until nothing can go on:
    /// without power, or while completions are held.
    pub fn run<T>(&self, main: impl Future<Output = T>) -> Option<T> {
        let mut main = pin!(main);
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&woken));
        loop {
            let main_was_woken = woken.0.swap(false, Ordering::Relaxed);
            let mut result = None;
            if main_was_woken
                && let Poll::Ready(ready) = main.as_mut().poll(&mut Context::from_waker(&waker))
            {
                result = Some(ready);
            }
            let any = self.poll_tasks();
            if result.is_some() {
                return result;
            }
            if !main_was_woken && !any && !self.advance() {
                return None;
            }
        }
    }

    /// Lets the tasks go on as far as they can without the disk's doing: for a caller that has a clock of its
    /// own, and says itself when an operation finishes ([`SimDisk::finish_one`]).
    pub fn settle(&self) {
        while self.poll_tasks() {}
    }

    /// Finishes an operation in flight, the oldest for 0; nothing when there are not so many. The tasks that
    /// wait for it go on with [`SimDisk::settle`].
    pub fn finish_one(&self, pick: usize) {
        let mut sim = self.0.borrow_mut();
        let mut open = (0..sim.in_flight.len()).filter(|at| {
            let operation = sim.in_flight.get(*at);
            operation.is_some_and(|operation| operation.result.is_none())
        });
        if let Some(at) = open.nth(pick)
            && !sim.powerless
        {
            sim.finish(at);
        }
    }

    /// Moves the disk's clock, and wakes who slept until then.
    pub fn advance_to(&self, now: Duration) {
        let mut sim = self.0.borrow_mut();
        sim.now = sim.now.max(now);
        let now = sim.now;
        for (_, waker) in sim.sleepers.extract_if(.., |(due, _)| *due <= now) {
            waker.wake();
        }
    }

    /// Lets so much simulated time pass: all that is due by then has happened, and no time is spent.
    ///
    /// # Panics
    /// When nothing can go on before that.
    pub fn pass(&self, time: Duration) {
        let passed = self.run(self.sleep(time));
        passed.expect("nothing holds up the clock");
    }

    /// Adds a task that runs whenever [`SimDisk::run`] does.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        self.0.borrow_mut().tasks.push(Task {
            future: Box::pin(task),
            woken,
        });
    }

    /// Drops all spawned tasks, as the end of a process does.
    pub fn kill_tasks(&self) {
        let tasks = std::mem::take(&mut self.0.borrow_mut().tasks);
        drop(tasks);
    }

    /// Polls the tasks that were woken; whether there was one.
    fn poll_tasks(&self) -> bool {
        let mut tasks = std::mem::take(&mut self.0.borrow_mut().tasks);
        let mut any = false;
        tasks.retain_mut(|task| {
            let was_woken = task.is_woken();
            any |= was_woken;
            !was_woken || !task.poll_now()
        });
        let spawned = std::mem::replace(&mut self.0.borrow_mut().tasks, tasks);
        self.0.borrow_mut().tasks.extend(spawned);
        any
    }

    /// Finishes one operation, or moves the clock; whether something happened.
    fn advance(&self) -> bool {
        let mut sim = self.0.borrow_mut();
        if sim.powerless {
            return false;
        }
        let open: Vec<usize> = (0..sim.in_flight.len())
            .filter(|index| {
                sim.in_flight
                    .get(*index)
                    .is_some_and(|io| io.result.is_none())
            })
            .collect();
        if !open.is_empty() && !sim.held {
            let pick = if sim.reorder { sim.draw(open.len()) } else { 0 };
            sim.finish(open[pick]);
            return !sim.powerless;
        }
        let Some(next) = sim.sleepers.iter().map(|(due, _)| *due).min() else {
            return false;
        };
        sim.now = sim.now.max(next);
        let now = sim.now;
        for (_, waker) in sim.sleepers.extract_if(.., |(due, _)| *due <= now) {
            waker.wake();
        }
        true
    }

    fn submit(&self, work: Work) -> Submitted {
        let mut sim = self.0.borrow_mut();
        let id = sim.next_operation;
        sim.next_operation += 1;
        sim.in_flight.push(Unfinished {
            id,
            work,
            result: None,
            waker: None,
        });
        Submitted {
            disk: self.clone(),
            id,
        }
    }

    pub(crate) fn name_change(&self, from: Option<&Path>, to: Option<&Path>, inode: u64) {
        self.change_names(from, to, Named::File(inode));
    }

    pub(crate) fn change_names(&self, from: Option<&Path>, to: Option<&Path>, what: Named) {
        let mut sim = self.0.borrow_mut();
        let operation = sim.next_operation;
        sim.next_operation += 1;
        let change = NameChange::new(operation, from, to, what);
        change.apply(&mut sim.live);
        sim.unsynced.push(change);
    }

    pub(crate) fn inode_of(&self, path: &Path) -> io::Result<u64> {
        self.0
            .borrow()
            .live
            .files
            .get(path)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Fault {
    fn operation(self) -> Operation {
        match self {
            Self::WriteError { .. } | Self::LostWrite | Self::MisdirectedWrite(_) => {
                Operation::Write
            }
            Self::ReadError => Operation::Read,
            Self::FlushError => Operation::Flush,
        }
    }
}

impl Task {
    fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::Relaxed)
    }

    /// Whether it has finished.
    fn poll_now(&mut self) -> bool {
        self.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready()
    }
}

/// What a power cut keeps or loses as a whole.
enum Unit {
    Bytes {
        inode: u64,
        offset: usize,
        bytes: Vec<u8>,
    },
    Name(NameChange),
}

impl Sim {
    /// A number below `bound` (SplitMix64).
    fn draw(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap_or(0)
    }

    /// The fault for an operation of this kind that happens now, if any.
    pub(crate) fn fault(&mut self, operation: Operation) -> Option<Fault> {
        let count = self.counted.entry(operation as u8).or_insert(0);
        let now = *count;
        *count += 1;
        let hit = |(at, fault): &(u64, Fault)| fault.concerns(operation) && *at == now;
        let index = self.faults.iter().position(hit)?;
        self.faults.remove(index).map(|(_, fault)| fault)
    }

    fn finish(&mut self, index: usize) {
        if self.power_cut_at == Some(self.finished) {
            self.powerless = true;
            return;
        }
        self.finished += 1;
        let Some(io) = self.in_flight.get_mut(index) else {
            return;
        };
        let (id, work) = (io.id, std::mem::replace(&mut io.work, Work::Other));
        let result = self.carry_out(id, work);
        if let Some(io) = self.in_flight.get_mut(index) {
            io.result = Some(result);
            if let Some(waker) = io.waker.take() {
                waker.wake();
            }
        }
    }

    fn carry_out(&mut self, id: u64, work: Work) -> io::Result<()> {
        match work {
            Work::Write {
                inode,
                offset,
                bytes,
            } => {
                let fault = self.fault(Operation::Write);
                self.last_writes.push_back((inode, offset));
                if self.last_writes.len() > LAST_WRITES {
                    self.last_writes.pop_front();
                }
                let Some(inode) = self.inodes.get_mut(&inode) else {
                    return Ok(());
                };
                let mut target = Some(offset);
                match fault {
                    Some(Fault::LostWrite) => target = None,
                    Some(Fault::MisdirectedWrite(by)) => {
                        target = Some(offset + usize::try_from(by).unwrap_or(0));
                    }
                    Some(Fault::WriteError { kept }) => {
                        let kept = &bytes[..kept.min(bytes.len())];
                        overwrite(Rc::make_mut(&mut inode.durable), offset, kept);
                        inode.live = Rc::clone(&inode.durable);
                        return Err(io::Error::from_raw_os_error(libc::EIO));
                    }
                    Some(Fault::ReadError | Fault::FlushError) | None => {}
                }
                if let Some(target) = target {
                    overwrite(Rc::make_mut(&mut inode.durable), target, &bytes);
                    overwrite(Rc::make_mut(&mut inode.live), target, &bytes);
                }
                Ok(())
            }
            Work::Create { inode, bytes } => {
                let needed = bytes as u64;
                if self.available < needed {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                self.available -= needed;
                if let Some(inode) = self.inodes.get_mut(&inode) {
                    inode.live = Rc::new(vec![0; bytes]);
                    inode.durable = Rc::clone(&inode.live);
                }
                Ok(())
            }
            Work::SyncDir { dir } => self.sync_dir(&dir, id),
            Work::Other => Ok(()),
        }
    }

    /// Flushes the changes of names that were asked for before operation `id`.
    pub(crate) fn sync_dir(&mut self, dir: &Path, id: u64) -> io::Result<()> {
        if self.fault(Operation::Flush).is_some() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.flush_names(dir, id);
        Ok(())
    }

    /// As [`Sim::sync_dir`], and it does not fail.
    fn flush_names(&mut self, dir: &Path, id: u64) {
        let names = &mut self.durable;
        let mut removed = Vec::new();
        self.unsynced.retain(|change| {
            let here = change.dir() == Some(dir) && change.is_before(id);
            if here {
                change.apply(names);
                removed.extend(change.removed_dir().map(Path::to_path_buf));
            }
            !here
        });
        // What was to become of names in it has no meaning any more, also when a directory of its name comes back.
        self.unsynced
            .retain(|change| !removed.iter().any(|dir| change.is_below(dir)));
    }

    fn units(&self) -> Vec<Unit> {
        let mut units = Vec::new();
        for io in self.in_flight.iter().filter(|io| io.result.is_none()) {
            if let Work::Write {
                inode,
                offset,
                bytes,
            } = &io.work
            {
                for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                    let at = offset + index * SECTOR_BYTES;
                    self.unit_of(&mut units, *inode, at, sector);
                }
            }
        }
        for (number, inode) in &self.inodes {
            for sector in &inode.dirty {
                let at = sector * SECTOR_BYTES;
                let end = inode.live.len().min(at + SECTOR_BYTES);
                self.unit_of(
                    &mut units,
                    *number,
                    at,
                    inode.live.get(at..end).unwrap_or_default(),
                );
            }
        }
        units.extend(self.unsynced.iter().cloned().map(Unit::Name));
        units
    }

    /// Adds a unit unless losing it and keeping it are the same.
    fn unit_of(&self, units: &mut Vec<Unit>, inode: u64, offset: usize, bytes: &[u8]) {
        let durable = self
            .inodes
            .get(&inode)
            .map(|inode| inode.durable.as_slice());
        if durable.and_then(|durable| durable.get(offset..offset + bytes.len())) != Some(bytes) {
            units.push(Unit::Bytes {
                inode,
                offset,
                bytes: bytes.to_vec(),
            });
        }
    }
}

pub(crate) fn overwrite(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

/// An operation that was handed to the disk; dropped early it goes on.
struct Submitted {
    disk: SimDisk,
    id: u64,
}

impl Future for Submitted {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut sim = self.disk.0.borrow_mut();
        let Some(index) = sim.in_flight.iter().position(|io| io.id == self.id) else {
            return Poll::Pending;
        };
        match sim.in_flight[index].result.take() {
            Some(result) => {
                sim.in_flight.remove(index);
                Poll::Ready(result)
            }
            None => {
                sim.in_flight[index].waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;
    type Buffer = Vec<u8>;
    type Read = Vec<u8>;
    type Lock = SimLock;

    async fn open(&self, path: &Path) -> io::Result<SimFile> {
        self.inode_of(path).map(SimFile)
    }

    async fn create_zeroed(
        &self,
        path: &Path,
        bytes: u64,
        urgency: impl Fn(u64) -> Urgency,
    ) -> io::Result<SimFile> {
        let urgency = urgency(0);
        let inode = {
            let mut sim = self.0.borrow_mut();
            sim.last_urgency = Some(urgency);
            let inode = sim.next_inode;
            sim.next_inode += 1;
            sim.inodes.insert(inode, Inode::default());
            inode
        };
        self.name_change(None, Some(path), inode);
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        self.submit(Work::Create { inode, bytes }).await?;
        Ok(SimFile(inode))
    }

    async fn size(&self, file: &SimFile) -> io::Result<u64> {
        let sim = self.0.borrow();
        Ok(sim
            .inodes
            .get(&file.0)
            .map_or(0, |inode| inode.live.len() as u64))
    }

    async fn read_at(&self, file: &SimFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut sim = self.0.borrow_mut();
        if sim.fault(Operation::Read).is_some() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let Some(inode) = sim.inodes.get(&file.0) else {
            return Ok(Vec::new());
        };
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(inode.live.len());
        let end = start.saturating_add(len).min(inode.live.len());
        Ok(inode.live[start..end].to_vec())
    }

    async fn write_durable_at(
        &self,
        file: &SimFile,
        offset: u64,
        buffer: &Vec<u8>,
    ) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.submit(Work::Write {
            inode: file.0,
            offset,
            bytes: buffer.clone(),
        })
        .await
    }

    async fn flush(&self, _file: &SimFile) -> io::Result<()> {
        let failed = self.0.borrow_mut().fault(Operation::Flush).is_some();
        self.submit(Work::Other).await?;
        if failed {
            Err(io::Error::from_raw_os_error(libc::EIO))
        } else {
            Ok(())
        }
    }

    async fn close(&self, _file: SimFile) {}

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.inode_of(from)?;
        self.name_change(Some(from), Some(to), inode);
        self.submit(Work::Other).await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        let inode = self.inode_of(path)?;
        self.name_change(Some(path), None, inode);
        let freed = self
            .0
            .borrow()
            .inodes
            .get(&inode)
            .map_or(0, |inode| inode.live.len() as u64);
        self.0.borrow_mut().available += freed;
        self.submit(Work::Other).await
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let sim = self.0.borrow();
        if !sim.live.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let name = |path: &Path| {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        let files = sim
            .live
            .files
            .iter()
            .filter(|(path, _)| path.parent() == Some(dir));
        let files = files.filter_map(|(path, inode)| {
            let bytes = sim
                .inodes
                .get(inode)
                .map_or(0, |inode| inode.live.len() as u64);
            Some(Entry {
                name: name(path)?,
                bytes,
                is_dir: false,
            })
        });
        let dirs = sim
            .live
            .dirs
            .iter()
            .filter(|path| path.parent() == Some(dir));
        let dirs = dirs.filter_map(|path| {
            Some(Entry {
                name: name(path)?,
                bytes: 0,
                is_dir: true,
            })
        });
        Ok(files.chain(dirs).collect())
    }

    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut sim = self.0.borrow_mut();
        let mut missing: Vec<&Path> = dir.ancestors().collect();
        missing.retain(|dir| !sim.live.dirs.contains(*dir));
        for made in missing.into_iter().rev() {
            sim.live.dirs.insert(made.to_path_buf());
            // The parent is flushed, and with it what else has happened to its names.
            if let Some(parent) = made.parent() {
                sim.flush_names(parent, u64::MAX);
            }
            sim.durable.dirs.insert(made.to_path_buf());
        }
        Ok(())
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.submit(Work::SyncDir {
            dir: dir.to_path_buf(),
        })
        .await
    }

    fn available(&self, _dir: &Path) -> io::Result<u64> {
        Ok(self.0.borrow().available)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<SimLock>> {
        let taken = self.0.borrow_mut().locks.insert(path.to_path_buf());
        Ok(taken.then(|| SimLock {
            disk: self.clone(),
            path: path.to_path_buf(),
        }))
    }

    async fn sleep(&self, duration: Duration) {
        let due = self.0.borrow().now + duration;
        poll_fn(|context| {
            let mut sim = self.0.borrow_mut();
            if sim.now >= due {
                return Poll::Ready(());
            }
            sim.sleepers.push((due, context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    fn now(&self) -> Duration {
        self.0.borrow().now
    }

    fn unique(&self) -> u64 {
        let mut sim = self.0.borrow_mut();
        sim.draw(usize::MAX) as u64
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sim = self.0.borrow();
        f.debug_struct("SimDisk")
            .field("files", &sim.live.files.len())
            .field("finished", &sim.finished)
            .field("powerless", &sim.powerless)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SimLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimLock").field(&self.path).finish()
    }
}
