//! Who holds a TCP port: a process that lives, or one that the kernel is still taking down.

use std::fs;
use std::path::Path;

/// The state of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Whether a process that can be seen listens on `port`. When its rings are being torn down a process
/// that was killed has no descriptors any more, but its sockets are still there.
pub(crate) fn is_alive(port: u16) -> bool {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .flat_map(|table| listening(&fs::read_to_string(table).unwrap_or_default(), port))
        .collect();
    if inodes.is_empty() {
        return false;
    }
    let Ok(processes) = fs::read_dir("/proc") else {
        return true;
    };
    processes
        .flatten()
        .any(|process| holds_one(&process.path().join("fd"), &inodes))
}

fn holds_one(descriptors: &Path, inodes: &[String]) -> bool {
    let Ok(descriptors) = fs::read_dir(descriptors) else {
        return false;
    };
    descriptors.flatten().any(|descriptor| {
        let target = fs::read_link(descriptor.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        let inode = target
            .strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'));
        inode.is_some_and(|inode| inodes.iter().any(|known| known == inode))
    })
}

/// The inodes of the sockets in `table` that listen on `port`.
fn listening(table: &str, port: u16) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    let rows = table.lines().skip(1).filter_map(|row| {
        let mut fields = row.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let inode = fields.nth(5)?;
        (local.ends_with(&suffix) && state == LISTEN).then(|| inode.to_owned())
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn rows_of_the_kernel_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 0100007F:08AE 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 123 1\n\
                     1: 0100007F:08AE 0100007F:A001 01 00000000:00000000 00:00000000 00000000     0        0 124 1\n\
                     2: 0100007F:08AF 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 125 1\n";
        assert_eq!(listening(table, 2222), ["123"]);
    }

    #[test]
    fn a_listener_of_this_process_is_alive() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        assert!(is_alive(port));
        drop(listener);
        assert!(!is_alive(port));
    }
}
