//! Who votes, and which sets of voters decide.
//!
//! Invariants:
//! - Any two quorums of one ensemble have a server in common. It is checked by brute force in the tests,
//!   against a plain second implementation.
//! - While a next configuration is known and not active, what a quorum of the present one decides needs a
//!   quorum of the next one too. So of two members, one of which has activated it already, none decides
//!   without the other's knowledge.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringkeeper_proto::{ServerId, Zxid};

/// The members of an ensemble and how they decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ensemble {
    version: u64,
    text: Arc<str>,
    voters: BTreeSet<ServerId>,
    observers: BTreeSet<ServerId>,
    rule: Rule,
    next: Option<Box<Next>>,
    /// An oracle may let one of two voters decide alone.
    has_oracle: bool,
    /// This server, while the oracle lets it decide alone.
    alone: Option<ServerId>,
}

/// A configuration that is known and not active yet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Next {
    /// The transaction that sets it.
    zxid: Zxid,
    ensemble: Ensemble,
    /// The voters of both configurations.
    electorate: BTreeSet<ServerId>,
}

/// Groups and weights of a hierarchical ensemble (`group.N`, `weight.N`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// The group of each voter.
    pub group_of: BTreeMap<ServerId, u64>,
    /// Weights other than 1.
    pub weight_of: BTreeMap<ServerId, u64>,
}

/// Why members do not make an ensemble.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnsembleError {
    /// Nobody votes.
    #[error("an ensemble needs at least one voter")]
    NoVoters,
    /// A server both votes and observes.
    #[error("server {0} is a voter and an observer")]
    TwoRoles(ServerId),
    /// A voter without a group, where there are groups (ZooKeeper refuses it too).
    #[error("server {0} is in no group")]
    NoGroup(ServerId),
    /// Every weight is zero, so nothing could ever be decided.
    #[error("no group has weight")]
    NoWeight,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Majority,
    Hierarchical {
        weights: Weights,
        /// Total weight by group; only groups with weight.
        groups: BTreeMap<u64, u64>,
    },
}

impl Ensemble {
    /// An ensemble that decides by majority.
    pub fn majority(
        voters: impl IntoIterator<Item = ServerId>,
        observers: impl IntoIterator<Item = ServerId>,
    ) -> Result<Self, EnsembleError> {
        Self::new(voters, observers, Rule::Majority)
    }

    /// An ensemble that decides by a majority of weight in a majority of the groups with weight
    /// (ZK: QuorumHierarchical).
    pub fn hierarchical(
        voters: impl IntoIterator<Item = ServerId>,
        observers: impl IntoIterator<Item = ServerId>,
        weights: Weights,
    ) -> Result<Self, EnsembleError> {
        let voters: BTreeSet<_> = voters.into_iter().collect();
        let mut groups = BTreeMap::<u64, u64>::new();
        for voter in &voters {
            let group = *weights
                .group_of
                .get(voter)
                .ok_or(EnsembleError::NoGroup(*voter))?;
            let weight = weights.weight_of.get(voter).copied().unwrap_or(1);
            let total = groups.entry(group).or_default();
            *total = total.saturating_add(weight);
        }
        // ZK: groups of weight zero are not counted.
        groups.retain(|_, total| *total > 0);
        if groups.is_empty() && !voters.is_empty() {
            return Err(EnsembleError::NoWeight);
        }
        Self::new(voters, observers, Rule::Hierarchical { weights, groups })
    }

    /// The ensemble of a server that is alone.
    pub fn alone(id: ServerId) -> Self {
        Self {
            version: 0,
            text: Arc::from(""),
            voters: BTreeSet::from([id]),
            observers: BTreeSet::new(),
            rule: Rule::Majority,
            next: None,
            has_oracle: false,
            alone: None,
        }
    }

    fn new(
        voters: impl IntoIterator<Item = ServerId>,
        observers: impl IntoIterator<Item = ServerId>,
        rule: Rule,
    ) -> Result<Self, EnsembleError> {
        let voters: BTreeSet<_> = voters.into_iter().collect();
        let observers: BTreeSet<_> = observers.into_iter().collect();
        if voters.is_empty() {
            return Err(EnsembleError::NoVoters);
        }
        if let Some(both) = voters.intersection(&observers).next() {
            return Err(EnsembleError::TwoRoles(*both));
        }
        Ok(Self {
            version: 0,
            text: Arc::from(""),
            voters,
            observers,
            rule,
            next: None,
            has_oracle: false,
            alone: None,
        })
    }

    /// The same ensemble with its configuration's version and text (what NEWLEADER and notifications
    /// carry: ZooKeeper's `QuorumVerifier.toString`).
    #[must_use]
    pub fn described(mut self, version: u64, text: impl Into<Arc<str>>) -> Self {
        self.version = version;
        self.text = text.into();
        self
    }

    /// The same ensemble with an oracle: where two servers vote, it may let one of them decide without the other
    /// (ZK: `QuorumOracleMaj`).
    #[must_use]
    pub const fn with_oracle(mut self) -> Self {
        self.has_oracle = true;
        self
    }

    /// Whether an oracle may let one of the voters decide alone.
    pub(crate) fn heeds_oracle(&self) -> bool {
        self.has_oracle && self.voters.len() == 2
    }

    /// Lets `server` decide alone, or nobody.
    pub(crate) fn let_alone(&mut self, server: Option<ServerId>) {
        self.alone = server.filter(|_| self.heeds_oracle());
    }

    /// Whether this server decides alone.
    pub(crate) const fn is_alone(&self) -> bool {
        self.alone.is_some()
    }

    /// The configuration's version: the zxid that established it, 0 for one from a file.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The configuration's text.
    pub const fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// The version of the newest configuration that is known, active or not.
    pub fn newest_version(&self) -> u64 {
        let next = self.next.as_ref();
        next.map_or(self.version, |next| next.ensemble.version)
    }

    /// The text of the newest configuration that is known (ZK: `lastSeenQuorumVerifier`).
    pub fn newest_text(&self) -> &Arc<str> {
        let next = self.next.as_ref();
        next.map_or(&self.text, |next| &next.ensemble.text)
    }

    /// The transaction that sets the next configuration, if one is known that is not active.
    pub fn next_zxid(&self) -> Option<Zxid> {
        Some(self.next.as_ref()?.zxid)
    }

    /// The next configuration, if one is known that is not active.
    pub fn next(&self) -> Option<&Self> {
        Some(&self.next.as_ref()?.ensemble)
    }

    /// Notes a configuration that the transaction at `zxid` sets. False if a newer one is known.
    pub(crate) fn set_next(&mut self, zxid: Zxid, ensemble: Self) -> bool {
        if ensemble.version <= self.version {
            return false;
        }
        let electorate = self.voters.union(&ensemble.voters).copied().collect();
        self.next = Some(Box::new(Next {
            zxid,
            ensemble,
            electorate,
        }));
        true
    }

    /// The transaction that sets the next configuration has been cut off.
    pub(crate) fn forget_next(&mut self) {
        self.next = None;
    }

    /// Makes the next configuration the active one.
    pub(crate) fn activate_next(&mut self) {
        if let Some(next) = self.next.take() {
            let has_oracle = self.has_oracle;
            *self = next.ensemble;
            self.has_oracle = has_oracle;
        }
    }

    /// The voting members, of the active and of the next configuration.
    pub fn voters(&self) -> &BTreeSet<ServerId> {
        let next = self.next.as_ref();
        next.map_or(&self.voters, |next| &next.electorate)
    }

    /// Whether the server votes in the active configuration.
    pub fn is_active_voter(&self, id: ServerId) -> bool {
        self.voters.contains(&id)
    }

    /// The members that do not vote.
    pub const fn observers(&self) -> &BTreeSet<ServerId> {
        &self.observers
    }

    /// Whether the server votes, in the active or in the next configuration.
    pub fn is_voter(&self, id: ServerId) -> bool {
        self.voters().contains(&id)
    }

    /// The weight of a voter; 0 never leads (ZK: `totalOrderPredicate`).
    pub fn weight(&self, id: ServerId) -> u64 {
        let next = self.next.as_ref();
        let next = next.map_or(0, |next| next.ensemble.weight(id));
        next.max(self.own_weight(id))
    }

    fn own_weight(&self, id: ServerId) -> u64 {
        match &self.rule {
            _ if !self.voters.contains(&id) => 0,
            Rule::Majority => 1,
            Rule::Hierarchical { weights, .. } => weights.weight_of.get(&id).copied().unwrap_or(1),
        }
    }

    /// Whether the voters for which `counts` is true decide, in the active configuration and in the next one,
    /// if there is one. Others than voters are not asked.
    pub fn is_quorum(&self, mut counts: impl FnMut(ServerId) -> bool) -> bool {
        let next = self.next.as_ref();
        self.is_active_quorum(&mut counts)
            && next.is_none_or(|next| next.ensemble.is_active_quorum(&mut counts))
    }

    /// Whether those for which `counts` is true may have decided anything, in the active configuration or in the
    /// next one, which may be active elsewhere.
    pub(crate) fn may_have_decided(&self, mut counts: impl FnMut(ServerId) -> bool) -> bool {
        if self.heeds_oracle() {
            // It may have let one of them.
            return self.voters.iter().any(|id| counts(*id));
        }
        let next = self.next.as_ref();
        self.is_active_quorum(&mut counts)
            || next.is_some_and(|next| next.ensemble.is_active_quorum(&mut counts))
    }

    fn is_active_quorum(&self, counts: &mut dyn FnMut(ServerId) -> bool) -> bool {
        if self.alone.is_some_and(&mut *counts) {
            return true;
        }
        match &self.rule {
            Rule::Majority => {
                let agreeing = self.voters.iter().filter(|id| counts(**id)).count();
                agreeing > self.voters.len() / 2
            }
            Rule::Hierarchical { weights, groups } => {
                let mut sums = BTreeMap::<u64, u64>::new();
                for id in self.voters.iter().filter(|id| counts(**id)) {
                    if let Some(group) = weights.group_of.get(id) {
                        let sum = sums.entry(*group).or_default();
                        *sum = sum.saturating_add(self.own_weight(*id));
                    }
                }
                let won = groups
                    .iter()
                    .filter(|(group, total)| sums.get(group).copied().unwrap_or(0) > **total / 2)
                    .count();
                won > groups.len() / 2
            }
        }
    }

    /// The largest value that a quorum has reached, given what each voter has reached; `None` if some
    /// voters of every quorum have reached nothing.
    pub fn reached_by_quorum<T: Ord + Copy>(
        &self,
        mut reached: impl FnMut(ServerId) -> Option<T>,
    ) -> Option<T> {
        let active = self.reached_by_active(&mut reached);
        match &self.next {
            None => active,
            Some(next) => active.min(next.ensemble.reached_by_active(&mut reached)),
        }
    }

    /// The same for a quorum of the active configuration alone: what decides about transactions before the
    /// one that sets the next.
    pub(crate) fn reached_by_active<T: Ord + Copy>(
        &self,
        mut reached: impl FnMut(ServerId) -> Option<T>,
    ) -> Option<T> {
        // Asked for each acknowledgement: a few comparisons too many cost less than a sorted list.
        let mut best = None;
        for id in &self.voters {
            let value = reached(*id);
            if value > best
                && self.is_active_quorum(&mut |id| reached(id).is_some_and(|at| Some(at) >= value))
            {
                best = value;
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(ids: &[u64]) -> Vec<ServerId> {
        ids.iter().map(|id| ServerId(*id)).collect()
    }

    fn hierarchy(groups: &[(u64, &[(u64, u64)])]) -> Ensemble {
        let mut weights = Weights::default();
        let mut voters = Vec::new();
        for (group, members) in groups {
            for (id, weight) in *members {
                voters.push(ServerId(*id));
                weights.group_of.insert(ServerId(*id), *group);
                weights.weight_of.insert(ServerId(*id), *weight);
            }
        }
        Ensemble::hierarchical(voters, [], weights).unwrap()
    }

    fn subsets(ensemble: &Ensemble) -> Vec<BTreeSet<ServerId>> {
        let voters: Vec<_> = ensemble.voters().iter().copied().collect();
        (0_u32..1 << voters.len())
            .map(|mask| {
                let chosen = voters.iter().enumerate();
                chosen
                    .filter(|(at, _)| mask & (1 << at) != 0)
                    .map(|(_, id)| *id)
                    .collect()
            })
            .collect()
    }

    #[test]
    fn quorums_of_an_ensemble_always_intersect() {
        let ensembles = [
            Ensemble::majority(servers(&[1]), []).unwrap(),
            Ensemble::majority(servers(&[1, 2]), []).unwrap(),
            Ensemble::majority(servers(&[1, 2, 3, 4, 5]), []).unwrap(),
            hierarchy(&[
                (1, &[(1, 1), (2, 1), (3, 1)]),
                (2, &[(4, 1), (5, 1), (6, 0)]),
            ]),
            hierarchy(&[
                (1, &[(1, 3), (2, 1)]),
                (2, &[(3, 1)]),
                (3, &[(4, 2), (5, 2)]),
            ]),
            hierarchy(&[(1, &[(1, 1), (2, 1), (3, 1)]), (2, &[(4, 0), (5, 0)])]),
        ];
        for ensemble in &ensembles {
            let quorums: Vec<_> = subsets(ensemble)
                .into_iter()
                .filter(|set| ensemble.is_quorum(|id| set.contains(&id)))
                .collect();
            assert!(!quorums.is_empty(), "{ensemble:?} can decide");
            for a in &quorums {
                assert!(
                    quorums.iter().all(|b| !a.is_disjoint(b)),
                    "{a:?} in {ensemble:?}"
                );
            }
        }
    }

    #[test]
    fn the_reached_value_agrees_with_counting() {
        let ensemble = hierarchy(&[
            (1, &[(1, 2), (2, 1), (3, 1)]),
            (2, &[(4, 1)]),
            (3, &[(5, 1)]),
        ]);
        for code in 0..4_u32.pow(5) {
            let at = |id: ServerId| {
                let digit = code / 4_u32.pow(u32::try_from(id.0).unwrap() - 1) % 4;
                (digit > 0).then_some(digit)
            };
            let expected = (1..4).rev().find(|value| {
                ensemble.is_quorum(|id| at(id).is_some_and(|reached| reached >= *value))
            });
            assert_eq!(ensemble.reached_by_quorum(at), expected, "code {code}");
        }
    }

    #[test]
    fn with_a_next_configuration_both_decide() {
        let set = |ids: &[u64]| servers(ids).into_iter().collect::<BTreeSet<_>>();
        let mut ensemble = Ensemble::majority(servers(&[1, 2, 3]), servers(&[4])).unwrap();
        let later = Ensemble::majority(servers(&[3, 4, 5]), []).unwrap();
        assert!(
            !ensemble.set_next(Zxid(7), later.clone()),
            "its version is not newer"
        );
        assert!(ensemble.set_next(Zxid(7), later.clone().described(7, "next")));
        assert_eq!(*ensemble.voters(), set(&[1, 2, 3, 4, 5]));
        assert!(ensemble.is_voter(ServerId(5)) && !ensemble.is_active_voter(ServerId(5)));
        assert_eq!((ensemble.version(), ensemble.newest_version()), (0, 7));
        // Every set that decides has a quorum of each.
        for mask in 0_u32..32 {
            let counts = |id: ServerId| mask & (1 << (id.0 - 1)) != 0;
            let quorum_of =
                |ids: [u64; 3]| ids.into_iter().filter(|id| counts(ServerId(*id))).count() >= 2;
            let expected = quorum_of([1, 2, 3]) && quorum_of([3, 4, 5]);
            assert_eq!(ensemble.is_quorum(counts), expected, "{mask:b}");
            let either = quorum_of([1, 2, 3]) || quorum_of([3, 4, 5]);
            assert_eq!(ensemble.may_have_decided(counts), either, "{mask:b}");
        }
        let reached = |id: ServerId| Some(10 - id.0);
        assert_eq!(ensemble.reached_by_active(reached), Some(8));
        assert_eq!(ensemble.reached_by_quorum(reached), Some(6));
        ensemble.activate_next();
        assert_eq!(ensemble, later.described(7, "next"));
        assert!(!ensemble.is_voter(ServerId(1)));
    }

    #[test]
    fn an_oracle_lets_one_of_two_decide_and_none_of_three() {
        let (me, other) = (ServerId(1), ServerId(2));
        let mut two = Ensemble::majority([me, other], []).unwrap();
        two.let_alone(Some(me));
        assert!(!two.is_alone(), "it has no oracle");
        let mut two = two.with_oracle();
        let decides = |ensemble: &Ensemble, id| ensemble.is_quorum(|of| of == id);
        assert!(!decides(&two, me));
        two.let_alone(Some(me));
        assert!(decides(&two, me) && !decides(&two, other));
        assert_eq!(two.reached_by_quorum(|id| (id == me).then_some(7)), Some(7));
        two.let_alone(None);
        assert!(!decides(&two, me));
        let mut three = Ensemble::majority([me, other, ServerId(3)], []).unwrap();
        three = three.with_oracle();
        three.let_alone(Some(me));
        assert!(!decides(&three, me));
    }

    #[test]
    fn weight_zero_is_no_help() {
        let ensemble = hierarchy(&[(1, &[(1, 1), (2, 1), (3, 0)])]);
        assert!(!ensemble.is_quorum(|id| id.0 == 1 || id.0 == 3));
        assert!(ensemble.is_quorum(|id| id.0 <= 2));
        assert_eq!(ensemble.weight(ServerId(3)), 0);
        assert_eq!(ensemble.weight(ServerId(9)), 0);
    }

    #[test]
    fn impossible_ensembles_are_refused() {
        assert_eq!(Ensemble::majority([], []), Err(EnsembleError::NoVoters));
        let both = Ensemble::majority(servers(&[1, 2]), servers(&[2]));
        assert_eq!(both, Err(EnsembleError::TwoRoles(ServerId(2))));
        let no_group = Ensemble::hierarchical(servers(&[1]), [], Weights::default());
        assert_eq!(no_group, Err(EnsembleError::NoGroup(ServerId(1))));
        let weights = Weights {
            group_of: BTreeMap::from([(ServerId(1), 1)]),
            weight_of: BTreeMap::from([(ServerId(1), 0)]),
        };
        let no_weight = Ensemble::hierarchical(servers(&[1]), [], weights);
        assert_eq!(no_weight, Err(EnsembleError::NoWeight));
    }
}
