//! The token bucket for connect requests, and the drop probability that follows its use
//! (ZK: BlueThrottle).

use std::sync::{Mutex, PoisonError};

use ringkeeper_config::ConnectionThrottleConfig;

use crate::clock;

/// Decides which connect requests are taken (`connection_throttle_*`).
#[derive(Debug)]
pub(crate) struct ConnectionThrottle {
    config: ConnectionThrottleConfig,
    /// Tokens that a new session costs.
    new_weight: i64,
    tokens_max: i64,
    fill_count: i64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tokens: i64,
    filled_ms: u64,
    /// Probability with which a request is dropped, and when it was changed last.
    drop_chance: f64,
    frozen_ms: u64,
}

impl ConnectionThrottle {
    /// A full bucket; `None` when the throttle is off. New sessions are `local` ones or not.
    pub(crate) fn new(config: &ConnectionThrottleConfig, local: bool) -> Option<Self> {
        let new_weight = match local {
            true => config.local_weight,
            false => config.global_weight,
        };
        let weight = if config.weighted {
            i64::from(config.global_weight)
        } else {
            1
        };
        let tokens_max = i64::from(config.tokens?) * weight;
        let now_ms = clock::monotonic_ms();
        Some(Self {
            config: config.clone(),
            new_weight: new_weight.into(),
            tokens_max,
            fill_count: i64::from(config.fill_count) * weight,
            state: Mutex::new(State {
                tokens: tokens_max,
                filled_ms: now_ms,
                drop_chance: 0.0,
                frozen_ms: now_ms,
            }),
        })
    }

    /// Whether a connect request is taken; `is_new` asks for a session that does not exist yet.
    pub(crate) fn take(&self, is_new: bool) -> bool {
        let needed = match (self.config.weighted, is_new) {
            (false, _) => 1,
            (true, true) => self.new_weight,
            (true, false) => i64::from(self.config.renew_weight),
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.fill(self, clock::monotonic_ms());
        state.adapt(self, clock::monotonic_ms());
        if state.drop_chance > 0.0 && rand::random::<f64>() < state.drop_chance {
            return false;
        }
        if state.tokens < needed {
            return false;
        }
        state.tokens -= needed;
        true
    }
}

impl State {
    fn fill(&mut self, throttle: &ConnectionThrottle, now_ms: u64) {
        let fill_ms = u64::from(throttle.config.fill_ms.max(1));
        let fills = (now_ms - self.filled_ms) / fill_ms;
        if fills > 0 {
            let fills_wanted = i64::try_from(fills).unwrap_or(i64::MAX);
            let added = fills_wanted.saturating_mul(throttle.fill_count);
            self.tokens = self.tokens.saturating_add(added).min(throttle.tokens_max);
            self.filled_ms += fills * fill_ms;
        }
    }

    // The chance of a drop grows while the bucket is empty and shrinks while it is hardly used.
    fn adapt(&mut self, throttle: &ConnectionThrottle, now_ms: u64) {
        let config = &throttle.config;
        let Some(freeze_ms) = config.freeze_ms else {
            return;
        };
        if now_ms - self.frozen_ms < u64::from(freeze_ms) {
            return;
        }
        if self.tokens == 0 {
            self.drop_chance = (self.drop_chance + config.drop_increase).min(1.0);
        } else if self.used(throttle) < config.decrease_ratio {
            self.drop_chance = (self.drop_chance - config.drop_decrease).max(0.0);
        }
        self.frozen_ms = now_ms;
    }

    fn used(&self, throttle: &ConnectionThrottle) -> f64 {
        1.0 - self.tokens as f64 / throttle.tokens_max.max(1) as f64
    }
}
