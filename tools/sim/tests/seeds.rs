//! A fixed set of seeds, and that a run is a function of its seed.

use ringkeeper_sim::run;

/// Seeds that have found something, and some more.
const SEEDS: [u64; 4] = [18, 21, 36, 1003];

#[test]
fn nothing_is_violated() {
    for seed in SEEDS {
        let outcome = run(seed, false);
        assert_eq!(
            outcome.violation, None,
            "replay: cargo run --profile sim -p ringkeeper-sim -- --seed {seed} --print"
        );
        assert!(
            outcome.seconds > 0,
            "no write was acknowledged with seed {seed}"
        );
    }
}

#[test]
fn a_seed_gives_one_trace() {
    let (first, again, other) = (run(7, false), run(7, false), run(8, false));
    assert_eq!(
        (first.trace_hash, first.trace_lines),
        (again.trace_hash, again.trace_lines)
    );
    assert_ne!(first.trace_hash, other.trace_hash);
}
