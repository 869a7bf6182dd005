//! The blocking side of [`SimDisk`]: snapshots are written and read through it, and an import works on it.
//!
//! Sectors that were written and not flushed are units of a power cut, as names are. An operation after the
//! power is cut fails.

use std::{fmt, io, io::Write, path::Path, rc::Rc};

use crate::{
    blocking_disk::BlockingDisk,
    sim_disk::{Fault, Inode, Operation, SECTOR_BYTES, SimDisk, overwrite},
    sim_names::Named,
    snapshot_files::{ReadFile, SnapshotFiles, WriteFile},
};

/// A simulated file that a blocking writer fills; unflushed sectors are units.
pub struct SimWrite {
    disk: SimDisk,
    inode: u64,
    offset: usize,
}

/// A simulated file that a blocking reader reads.
pub struct SimRead {
    disk: SimDisk,
    inode: u64,
}

impl SimDisk {
    /// Counts a blocking operation, and fails it once the power is cut.
    fn blocking_operation(&self) -> io::Result<()> {
        let mut sim = self.0.borrow_mut();
        if sim.power_cut_at == Some(sim.finished) {
            sim.powerless = true;
        }
        if sim.powerless {
            return Err(no_power());
        }
        sim.finished += 1;
        Ok(())
    }
}

impl SnapshotFiles for SimDisk {
    type Write = SimWrite;
    type Read = SimRead;
    type Uncached = SimRead;

    fn create(&self, path: &Path) -> io::Result<SimWrite> {
        self.blocking_operation()?;
        let inode = {
            let mut sim = self.0.borrow_mut();
            let inode = sim.next_inode;
            sim.next_inode += 1;
            sim.inodes.insert(inode, Inode::default());
            inode
        };
        self.name_change(None, Some(path), inode);
        Ok(SimWrite {
            disk: self.clone(),
            inode,
            offset: 0,
        })
    }

    fn overwrite(&self, path: &Path) -> io::Result<SimWrite> {
        self.blocking_operation()?;
        Ok(SimWrite {
            disk: self.clone(),
            inode: self.inode_of(path)?,
            offset: 0,
        })
    }

    fn open(&self, path: &Path) -> io::Result<SimRead> {
        Ok(SimRead {
            disk: self.clone(),
            inode: self.inode_of(path)?,
        })
    }

    fn open_uncached(&self, path: &Path) -> io::Result<SimRead> {
        SnapshotFiles::open(self, path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.blocking_operation()?;
        let inode = self.inode_of(from)?;
        self.name_change(Some(from), Some(to), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.blocking_operation()?;
        let inode = self.inode_of(path)?;
        self.name_change(Some(path), None, inode);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.blocking_operation()?;
        self.0.borrow_mut().sync_dir(dir, u64::MAX)
    }
}

impl BlockingDisk for SimDisk {
    type Files = Self;

    fn files(&self) -> Self {
        self.clone()
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> io::Result<T> {
        self.run(future).ok_or_else(no_power)
    }

    fn exists(&self, path: &Path) -> bool {
        self.0.borrow().live.contains(path)
    }

    fn rename_dir(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.blocking_operation()?;
        {
            let sim = self.0.borrow();
            if !sim.live.dirs.contains(from) {
                return Err(io::ErrorKind::NotFound.into());
            }
            if sim.live.contains(to) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            // The model has names by their paths: those that wait in it would have to move along.
            let waits = sim.unsynced.iter().any(|change| change.is_below(from));
            assert!(
                !waits,
                "the names in a directory are flushed before it moves"
            );
        }
        self.change_names(Some(from), Some(to), Named::Dir);
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.blocking_operation()?;
        {
            let sim = self.0.borrow();
            if !sim.live.dirs.contains(dir) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let (files, dirs) = sim.live.below(dir);
            if !files.is_empty() || !dirs.is_empty() {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
        }
        self.change_names(Some(dir), None, Named::Dir);
        Ok(())
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        let (files, mut dirs) = {
            let sim = self.0.borrow();
            if !sim.live.dirs.contains(dir) {
                return Ok(());
            }
            sim.live.below(dir)
        };
        for file in files {
            SnapshotFiles::remove(self, &file)?;
        }
        // The deepest first: they come in the order of their paths.
        dirs.insert(0, dir.to_path_buf());
        for dir in dirs.iter().rev() {
            self.remove_dir(dir)?;
        }
        Ok(())
    }
}

fn no_power() -> io::Error {
    io::Error::other("the power is cut")
}

impl Write for SimWrite {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.blocking_operation()?;
        let mut sim = self.disk.0.borrow_mut();
        match sim.fault(Operation::Write) {
            Some(Fault::LostWrite) => {
                self.offset += bytes.len();
                return Ok(bytes.len());
            }
            Some(_) => return Err(io::Error::from_raw_os_error(libc::EIO)),
            None => {}
        }
        let Some(inode) = sim.inodes.get_mut(&self.inode) else {
            return Ok(bytes.len());
        };
        overwrite(Rc::make_mut(&mut inode.live), self.offset, bytes);
        let end = self.offset + bytes.len();
        inode
            .dirty
            .extend(self.offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES));
        self.offset = end;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteFile for SimWrite {
    fn flush_durably(&mut self) -> io::Result<()> {
        self.disk.blocking_operation()?;
        let mut sim = self.disk.0.borrow_mut();
        if sim.fault(Operation::Flush).is_some() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if let Some(inode) = sim.inodes.get_mut(&self.inode) {
            // The length is what was written: less than before where a file was written over.
            Rc::make_mut(&mut inode.live).truncate(self.offset);
            inode.durable = Rc::clone(&inode.live);
            inode.dirty.clear();
        }
        Ok(())
    }
}

impl ReadFile for SimRead {
    fn size(&self) -> io::Result<u64> {
        let sim = self.disk.0.borrow();
        Ok(sim
            .inodes
            .get(&self.inode)
            .map_or(0, |inode| inode.live.len() as u64))
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut sim = self.disk.0.borrow_mut();
        if sim.fault(Operation::Read).is_some() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let content = sim
            .inodes
            .get(&self.inode)
            .map(|inode| inode.live.as_slice());
        let found = content.and_then(|content| content.get(start..)?.get(..bytes.len()));
        let found = found.ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(found);
        Ok(())
    }

    fn read_ahead(&self, _offset: u64, _len: u64) {}

    fn forget_cached(&self) {}
}

impl fmt::Debug for SimWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimWrite")
            .field("inode", &self.inode)
            .field("offset", &self.offset)
            .finish()
    }
}

impl fmt::Debug for SimRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimRead")
            .field("inode", &self.inode)
            .finish()
    }
}
