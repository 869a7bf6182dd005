//! Which CPU does what.

use std::fs;

use ringkeeper_config::Cpus;
use ringkeeper_member::Settings;

/// The CPUs of the server's threads.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    /// One per shard; the first is the replica core's too. `None` leaves it to the kernel.
    pub(crate) shards: Vec<Option<usize>>,
    /// Where other threads run that must not disturb the replica core; everywhere when it is empty.
    pub(crate) beside: Vec<usize>,
    /// All of them: for the loading at start, when nobody is served yet.
    pub(crate) all: Vec<usize>,
}

impl Placement {
    /// As configured; else one shard per CPU that this process may use. Members of an ensemble on one machine
    /// share its CPUs out among them; where there are fewer CPUs than members, nothing is pinned, for members
    /// pinned to one CPU wait for each other while another CPU is idle.
    pub(crate) fn new(settings: &Settings) -> Self {
        let placement = &settings.config.placement;
        let allowed = cpus_allowed();
        let cpus: Vec<usize> = match &placement.cpus {
            Cpus::Auto => match &settings.config.peers {
                Some(peers) => share(&allowed, peers.of_this_machine()),
                None => allowed.clone(),
            },
            Cpus::Unpinned => Vec::new(),
            Cpus::List(cpus) => cpus.iter().map(|cpu| *cpu as usize).collect(),
        };
        let count = placement
            .shards
            .map_or(cpus.len(), |count| count as usize)
            .max(1);
        let of_shard = |shard: usize| cpus.get(shard.checked_rem(cpus.len())?).copied();
        Self {
            shards: (0..count).map(of_shard).collect(),
            beside: cpus.iter().skip(1).copied().collect(),
            all: match placement.cpus {
                Cpus::List(_) => cpus,
                _ => allowed,
            },
        }
    }
}

/// The part of the CPUs of one of so many servers; none when there are too few.
fn share(cpus: &[usize], (servers, rank): (usize, usize)) -> Vec<usize> {
    let each = cpus.len() / servers;
    cpus.iter().skip(rank * each).take(each).copied().collect()
}

/// The CPUs that this process may use, as the kernel lists them ("0-1,4"); none when it does not say.
fn cpus_allowed() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    parse_list(list.unwrap_or(""))
}

fn parse_list(list: &str) -> Vec<usize> {
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel_are_read() {
        assert_eq!(parse_list("\t0-2,5,7-8\n"), [0, 1, 2, 5, 7, 8]);
        assert_eq!(parse_list("3"), [3]);
        assert_eq!(parse_list(""), []);
    }

    #[test]
    fn servers_of_one_machine_share_its_cpus() {
        assert_eq!(share(&[4, 5, 6, 7], (1, 0)), [4, 5, 6, 7]);
        assert_eq!(share(&[4, 5, 6, 7], (2, 1)), [6, 7]);
        assert_eq!(share(&[0, 1, 2, 3, 4], (3, 2)), [2]);
        assert_eq!(share(&[0, 1], (3, 0)), []);
    }
}
