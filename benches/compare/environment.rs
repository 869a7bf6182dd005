//! What a comparison was run on.

use std::fs;
use std::path::Path;

/// Pairs of name and value; what cannot be found out is left out.
pub(crate) fn describe(dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            found.push((name.to_owned(), value));
        }
    };
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let model = value_of("/proc/cpuinfo", "model name");
    add("CPU", model.map(|model| format!("{cpus} x {model}")));
    add("memory", value_of("/proc/meminfo", "MemTotal"));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
    add("kernel", kernel.map(|kernel| kernel.trim().to_owned()));
    add("file system", file_system(dir));
    found
}

fn value_of(file: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The mount with the longest path above `dir`.
fn file_system(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mount = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (device, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
            dir.starts_with(point).then_some((device, point, kind))
        })
        .max_by_key(|(_, point, _)| point.len())?;
    Some(format!("{} on {}", mount.2, mount.0))
}
