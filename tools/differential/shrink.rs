//! Makes a script that shows a difference shorter, as long as it still shows it.

use std::time::{Duration, Instant};

use crate::script::{Script, Step};

const LIMIT: Duration = Duration::from_secs(20);

/// The shortest script that could be found for which `differs` holds.
pub(crate) fn shrink(script: &Script, mut differs: impl FnMut(&Script) -> bool) -> Script {
    let start = Instant::now();
    let mut best = script.clone();
    loop {
        let before = size(&best);
        drop_chunks(&mut best, start, &mut differs);
        drop_calls(&mut best, start, &mut differs);
        if size(&best) == before || start.elapsed() > LIMIT {
            return best;
        }
    }
}

fn size(script: &Script) -> usize {
    script.operations() + script.steps.len()
}

/// Leaves out runs of steps, long ones first.
fn drop_chunks(best: &mut Script, start: Instant, differs: &mut impl FnMut(&Script) -> bool) {
    let mut len = best.steps.len() / 2;
    while len > 0 {
        let mut end = best.steps.len();
        while end > 0 && start.elapsed() < LIMIT {
            let from = end.saturating_sub(len);
            let mut shorter = best.clone();
            shorter.steps.drain(from..end.min(best.steps.len()));
            if !shorter.steps.is_empty() && differs(&shorter) {
                *best = shorter;
            }
            end = from;
        }
        len /= 2;
    }
}

/// Leaves out single calls of bursts.
fn drop_calls(best: &mut Script, start: Instant, differs: &mut impl FnMut(&Script) -> bool) {
    for step in (0..best.steps.len()).rev() {
        let mut place = calls_of(best, step);
        while place > 0 && calls_of(best, step) > 1 && start.elapsed() < LIMIT {
            place -= 1;
            let mut shorter = best.clone();
            if let Some(Step::Burst { calls, .. }) = shorter.steps.get_mut(step) {
                calls.remove(place);
            }
            if differs(&shorter) {
                *best = shorter;
            }
        }
    }
}

fn calls_of(script: &Script, step: usize) -> usize {
    match script.steps.get(step) {
        Some(Step::Burst { calls, .. }) => calls.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::script;
    use crate::servers::Settings;

    #[test]
    fn only_what_the_difference_needs_is_left() {
        let whole = (0..)
            .map(|index| script(3, index, Settings::Full))
            .find(|script| script.steps.len() > 8)
            .expect("some script is long");
        let has_connect = |script: &Script| {
            script
                .steps
                .iter()
                .any(|step| matches!(step, Step::Connect { slot: 0, .. }))
        };
        let short = shrink(&whole, has_connect);
        assert_eq!(short.steps.len(), 1);
    }
}
