//! Mutated bytes for every reader of what is stored: a wrong answer or a panic must not come of any of them.
//!
//! Runs on the stable toolchain. A short run is part of every test run; a long one, from a seed of its own:
//! `RINGKEEPER_MUTATIONS=10000000 RINGKEEPER_SEED=1 cargo test --release -p ringkeeper-storage --test mutations`.
#![allow(
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "random bytes wrap, and the number of cases is printed"
)]

use std::path::{Path, PathBuf};

use ringkeeper_proto::Zxid;
use ringkeeper_storage::{
    Compression, Dirs, HEADER_BYTES, LogOptions, OpenError, Opened, SimDisk, SnapshotReader,
    SnapshotWriter, StorageError, Store, offline,
};

const FOLDER: &str = "/data/ringkeeper";

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 32 << 10,
        batch_bytes_max: 4 << 10,
        record_bytes_max: 4 << 10,
        free_bytes_min: 0,
        spares_kept: 1,
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Cases of each test, of which one takes about so much longer than the cheapest.
fn cases(weight: u64) -> u64 {
    (setting("RINGKEEPER_MUTATIONS").unwrap_or(20_000) / weight).max(200)
}

struct Random(u64);

impl Random {
    fn new(test: u64) -> Self {
        let seed = setting("RINGKEEPER_SEED").unwrap_or(7);
        Self((seed << 8 | test).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// One to four changes of the kinds that disks and programs make: flipped bits, numbers that are limits, runs of zeros,
/// parts that stand elsewhere, a shorter file.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => {
                let value = [0, 1, u64::MAX, u64::MAX >> 1, 1 << 31][random.below(5)];
                let len = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
            }
            3 => {
                let len = [512, 4096, 7][random.below(3)].min(bytes.len() - at);
                bytes[at..at + len].fill(0);
            }
            4 => {
                // By whole blocks as a misdirected write, or by any distance.
                let from = random.below(bytes.len());
                let (from, at) = match random.below(2) {
                    0 => (from / 4096 * 4096, at / 4096 * 4096),
                    _ => (from, at),
                };
                let len = [512, 4096, 60][random.below(3)].min(bytes.len() - at.max(from));
                bytes.copy_within(from..from + len, at);
            }
            _ => bytes.truncate(at),
        }
    }
}

fn payload(zxid: u64) -> Vec<u8> {
    (0..zxid % 90).map(|i| (zxid * 7 + i) as u8).collect()
}

/// A directory with a snapshot, rolls, a truncation and several batches, and the history that it holds.
fn filled() -> (SimDisk, Vec<u64>) {
    let disk = SimDisk::new(5);
    disk.run({
        let disk = disk.clone();
        async move {
            let opened = Store::open(disk.clone(), &Dirs::single("/data"), options()).await;
            let Opened { store, mut log, .. } = opened.expect("make a store");
            disk.spawn(log.maintenance());
            for zxid in 1..=24_u64 {
                let mut batch = log.new_batch();
                let bytes = payload(zxid);
                batch
                    .append(Zxid(zxid), bytes.len(), |slot| slot.copy_from_slice(&bytes))
                    .expect("append");
                log.write(batch, Zxid(zxid - 1)).await.expect("write");
                if zxid == 9 {
                    let info = snapshot(&disk, Compression::Lz4, zxid);
                    store.register_snapshot(info).await.expect("register");
                }
                if zxid == 20 {
                    log.truncate(Zxid(19)).await.expect("truncate");
                }
            }
            log.seal(Zxid(24)).await.expect("seal");
        }
    })
    .expect("the log is filled");
    (disk, (1..=24).filter(|zxid| *zxid != 20).collect())
}

fn snapshot(disk: &SimDisk, by: Compression, zxid: u64) -> ringkeeper_storage::SnapshotInfo {
    let writer = SnapshotWriter::create_with(disk.clone(), Path::new(FOLDER), Zxid(zxid), None);
    let mut writer = writer.expect("create").compressed_by(by);
    for number in 0..4_u8 {
        writer
            .push_chunk(number.into(), &vec![number; 300])
            .expect("push");
    }
    writer.finish(zxid, [0; 4]).expect("finish")
}

#[test]
fn a_mutated_directory_is_opened_whole_or_refused() {
    let (good, history) = filled();
    let files = good.files();
    let mut random = Random::new(1);
    let (mut whole, mut refused, mut cut) = (0, 0, 0);
    for case in 0..cases(20) {
        let disk = good.after_power_cut(|_| true);
        let file = &files[random.below(files.len())];
        disk.damage(file, |bytes| mutate(bytes, &mut random));
        let context = format!("case {case}, {}", file.display());
        for as_member in [false, true] {
            let disk = disk.after_power_cut(|_| true);
            let opened = open(&disk, as_member);
            match opened {
                Ok(opened) => {
                    let opened_whole = opened.recovered.holdings.damage.is_none();
                    // The log before the newest snapshot is not needed, and not looked at.
                    let after = opened.recovered.snapshot().map_or(0, |info| info.zxid.0);
                    let found = records(&disk, opened, after, &context);
                    let history: Vec<u64> =
                        history.iter().copied().filter(|z| *z > after).collect();
                    // Whatever can be read is a beginning of what was written. Where the truncation itself is what
                    // is damaged, a member reads what it cut, and knows that the log goes on behind it.
                    let is_cut_told = !as_member || opened_whole;
                    let is_beginning = history.starts_with(&found)
                        || !is_cut_told && found == (after + 1..=20).collect::<Vec<_>>();
                    assert!(is_beginning, "{context}: {found:?}");
                    if found == history {
                        whole += 1;
                    } else if !as_member {
                        // Alone, only what nothing attests may be cut: here the seal at the end attests all of it, so it
                        // must be among what was damaged.
                        cut += 1;
                        let seal = last_header(&good, &good, file);
                        let seal_was_hit = last_header(&disk, &good, file) != seal;
                        assert!(seal_was_hit, "{context}: {found:?}");
                    }
                }
                Err(OpenError::Storage(StorageError::NewerFormat { .. })) => refused += 1,
                Err(OpenError::Storage(StorageError::Io { .. })) => refused += 1,
                Err(OpenError::Storage(other)) => panic!("{context}: {other}"),
                Err(_) => refused += 1,
            }
        }
    }
    println!("{whole} whole, {refused} refused, {cut} shorter");
    assert!(whole > 10 && refused > 10, "{whole} {refused}");
}

/// The header in the last block that was written of a file on `good`, as it is on `disk`.
fn last_header(disk: &SimDisk, good: &SimDisk, file: &Path) -> Vec<u8> {
    const BLOCK: usize = 4096;
    let made = good.content(file).unwrap_or_default();
    let end = made.iter().rposition(|byte| *byte != 0).unwrap_or(0) / BLOCK * BLOCK;
    let bytes = disk.content(file).unwrap_or_default();
    bytes
        .get(end..end + HEADER_BYTES)
        .unwrap_or_default()
        .to_vec()
}

fn open(disk: &SimDisk, as_member: bool) -> Result<Opened<SimDisk>, OpenError> {
    let disk = disk.clone();
    let runner = disk.clone();
    let opened = runner.run(async move {
        let dirs = Dirs::single("/data");
        match as_member {
            true => Store::open_as_member(disk, &dirs, options()).await,
            false => Store::open(disk, &dirs, options()).await,
        }
    });
    opened.expect("opening ends")
}

fn records(disk: &SimDisk, opened: Opened<SimDisk>, after: u64, context: &str) -> Vec<u64> {
    let context = context.to_owned();
    let found = disk.run(async move {
        let mut found = Vec::new();
        let Ok(mut reader) = opened.log.read_from(Zxid(after)) else {
            return found;
        };
        while let Ok(Some(records)) = reader.next_batch().await {
            for (zxid, bytes) in records {
                assert_eq!(bytes, payload(zxid.0), "{context}: {zxid}");
                found.push(zxid.0);
            }
        }
        found
    });
    found.expect("reading ends")
}

#[test]
fn a_mutated_snapshot_is_read_whole_or_refused() {
    let disk = SimDisk::new(5);
    disk.run({
        let disk = disk.clone();
        async move {
            Store::open(disk, &Dirs::single("/data"), options())
                .await
                .map(drop)
        }
    })
    .expect("opening ends")
    .expect("make a store");
    let mut random = Random::new(2);
    for by in [Compression::None, Compression::Lz4] {
        let info = snapshot(&disk, by, 3);
        let path = PathBuf::from(format!("{FOLDER}/snapshot-{:016x}", 3));
        let good = disk.content(&path).expect("it is there");
        let mut damaged = 0;
        for case in 0..cases(1) {
            let mut bad = good.clone();
            mutate(&mut bad, &mut random);
            disk.damage(&path, |bytes| bytes.clone_from(&bad));
            let Ok(reader) = SnapshotReader::open_file_with(&disk, &path) else {
                damaged += 1;
                continue;
            };
            assert!(reader.info() == info, "case {case}");
            let mut bytes = Vec::new();
            for chunk in reader.chunks() {
                match reader.read_chunk(chunk, &mut bytes) {
                    Ok(()) => assert_eq!(bytes, [chunk.kind as u8; 300], "case {case}"),
                    Err(_) => damaged += 1,
                }
            }
        }
        assert!(damaged > 100, "{damaged}");
        disk.damage(&path, |bytes| bytes.clone_from(&good));
    }
}

#[test]
fn mutated_blocks_are_answered_by_every_parser() {
    let (disk, _) = filled();
    let blocks: Vec<Vec<u8>> = disk
        .files()
        .iter()
        .filter_map(|path| disk.content(path))
        .flat_map(|bytes| bytes.chunks(8192).map(<[u8]>::to_vec).collect::<Vec<_>>())
        .collect();
    let mut random = Random::new(3);
    let mut headers = 0;
    for _ in 0..cases(1) * 5 {
        let mut block = blocks[random.below(blocks.len())].clone();
        mutate(&mut block, &mut random);
        offline::SegmentInfo::read(&block);
        offline::manifest_copy(&block);
        offline::records(&block).for_each(drop);
        if let offline::HeaderAt::Header(header) = offline::header_at(&block) {
            headers += 1;
            _ = offline::check_body(&header, &block, |_, _| ());
        }
        let start = random.below(block.len().max(1)).min(block.len());
        offline::records(&block[start..]).for_each(drop);
        offline::whole_header_at(&block[start..]);
    }
    assert!(headers > 100, "{headers}");
}
