//! What a bench ran on: without it a figure means nothing.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::Path;

/// Prints CPU, kernel, load, and the device that `dir` lies on; what the system does not tell is left out.
pub fn print(dir: Option<&Path>) {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("CPUs", |(_, model)| model);
    println!("machine: {cpus} x {model}");
    if let Some(kernel) = read("/proc/sys/kernel/osrelease") {
        println!("kernel: {kernel}");
    }
    if let Some(load) = read("/proc/loadavg") {
        // Others on the machine make every figure worse, and tails first.
        println!("load average before the bench: {load}");
    }
    if let Some(device) = dir.and_then(device) {
        println!("device: {device}");
    }
}

/// Number, write cache and FUA of the block device below `dir`.
fn device(dir: &Path) -> Option<String> {
    let number = fs::metadata(dir).ok()?.st_dev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    // A partition's queue is its disk's.
    let queue = |name: &str| {
        let device = format!("/sys/dev/block/{major}:{minor}");
        read(&format!("{device}/queue/{name}"))
            .or_else(|| read(&format!("{device}/../queue/{name}")))
    };
    let cache = queue("write_cache").unwrap_or_else(|| "unknown".to_owned());
    let fua = queue("fua").unwrap_or_else(|| "unknown".to_owned());
    Some(format!("{major}:{minor}, write cache {cache}, FUA {fua}"))
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}
