//! Changes of the membership: asked for by a client, proposed as a transaction, active when it is committed.
//!
//! ZK: the reconfig branch of PrepRequestProcessor, and `QuorumPeer.processReconfig`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringkeeper_config::Membership;
use ringkeeper_peers::{Member, MemberAddress, PeerCommand};
use ringkeeper_proto::reply::WriteReply;
use ringkeeper_proto::txn::{Txn, decode_record};
use ringkeeper_proto::{LossyText, OpCode, Request, ServerId, TxnHeader, ZkError, Zxid};
use ringkeeper_storage::Disk;
use ringkeeper_tree::Tree;
use ringkeeper_tree::check_session;
use ringkeeper_tree::execute::execute_reconfig;
use ringkeeper_zab::{Ensemble, EnsembleError, Input, Weights};

use crate::core::Core;
use crate::errand::Errand;
use crate::proposing::Asked;
use crate::publication::Answer;

/// Zab's view of a membership.
///
/// # Errors
/// When it is no ensemble.
pub fn ensemble(membership: &Membership) -> Result<Ensemble, EnsembleError> {
    let ids = |votes| {
        let members = membership.members.iter();
        members
            .filter(move |(_, member)| member.votes == votes)
            .map(|(id, _)| ServerId(*id))
    };
    let ensemble = match &membership.group_of {
        None => Ensemble::majority(ids(true), ids(false)),
        Some(group_of) => {
            let by_server = |map: &BTreeMap<u64, u64>| {
                let entries = map.iter();
                entries.map(|(id, value)| (ServerId(*id), *value)).collect()
            };
            let weights = Weights {
                group_of: by_server(group_of),
                weight_of: by_server(&membership.weight_of),
            };
            Ensemble::hierarchical(ids(true), ids(false), weights)
        }
    };
    Ok(ensemble?.described(membership.version, membership.text()))
}

/// The links' view of it.
pub fn peers(membership: &Membership) -> BTreeMap<ServerId, Member> {
    let members = membership.members.iter().map(|(id, member)| {
        let addresses = member.addresses.iter().map(|address| MemberAddress {
            host: address.host.clone(),
            quorum_port: address.quorum_port,
            election_port: address.election_port,
        });
        let member = Member {
            votes: member.votes,
            addresses: addresses.collect(),
        };
        (ServerId(*id), member)
    });
    members.collect()
}

/// The text that a record sets the configuration to, if it is a reconfiguration.
pub fn text_of_record(record: &[u8]) -> Option<String> {
    let (header, txn, _) = decode_record(record).ok()?;
    configuration_text(&header, &txn)
}

/// The same of a transaction.
pub(crate) fn configuration_text(header: &TxnHeader, txn: &Txn<'_>) -> Option<String> {
    match txn {
        Txn::SetData {
            data: Some(data), ..
        } if header.op == OpCode::Reconfig => Some(String::from_utf8_lossy(data).into_owned()),
        _ => None,
    }
}

impl<D: Disk> Core<D> {
    /// Executes a reconfiguration, as leader.
    pub(crate) fn propose_reconfiguration(
        &mut self,
        asked: &Asked<'_>,
        before: Option<Box<Tree>>,
        answer: impl FnOnce(Result<WriteReply, ZkError>) -> Answer,
    ) {
        let Some(zxid) = self.next_zxid() else {
            return;
        };
        let changed = self.changed_membership(asked, zxid);
        let text = changed
            .as_ref()
            .map(Membership::text)
            .map_err(|error| *error);
        let settings = Arc::clone(&self.settings);
        let context = asked.context(self.now.wall_ms, &settings.tree);
        let checked = match check_session(&context) {
            Ok(()) => text.as_ref().map(String::as_str).map_err(|error| *error),
            Err(error) => Err(error),
        };
        let (head, events) = (&mut self.head, &mut self.events);
        let executed = execute_reconfig(head, zxid, checked, &context, events);
        if executed.outcome.is_ok()
            && let Ok(membership) = &changed
        {
            tracing::info!(%zxid, config = membership.text(), "reconfiguration proposed");
            self.note_configuration(zxid, membership);
        }
        self.record(executed, before, answer);
    }

    /// The membership that a request asks for.
    fn changed_membership(&self, asked: &Asked<'_>, zxid: Zxid) -> Result<Membership, ZkError> {
        let text = LossyText::new();
        let request = Request::decode_lossy(OpCode::Reconfig, asked.body, &text);
        let Ok(Request::Reconfig {
            joining,
            leaving,
            new_members,
            config_id,
        }) = request
        else {
            return Err(ZkError::MarshallingError);
        };
        if !self.settings.tree.reconfig_enabled {
            return Err(ZkError::ReconfigDisabled);
        }
        let ensemble = self.zab.ensemble();
        if ensemble.next().is_some() {
            return Err(ZkError::ReconfigInProgress);
        }
        if config_id != -1 && config_id != ensemble.version().cast_signed() {
            return Err(ZkError::BadVersion);
        }
        let refused = |error: &dyn std::fmt::Display| {
            tracing::info!(%error, "a reconfiguration is refused");
            ZkError::BadArguments
        };
        let parts = |list: Option<&str>| -> Vec<String> {
            let parts = list.unwrap_or_default().split(',').map(str::trim);
            parts
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let mut changed = match new_members {
            Some(all) => {
                Membership::parse(&all.replace(',', "\n")).map_err(|error| refused(&error))?
            }
            None => {
                let present = Membership::parse(ensemble.text());
                let present = present.map_err(|error| refused(&error))?;
                let (leaving, joining) = (parts(leaving), parts(joining));
                let leaving: Vec<&str> = leaving.iter().map(String::as_str).collect();
                let joining: Vec<&str> = joining.iter().map(String::as_str).collect();
                let changed = present.changed(&leaving, &joining);
                changed.map_err(|error| refused(&error))?
            }
        };
        changed.version = zxid.0;
        let voters_min = match self.settings.config.ensemble.standalone {
            true => 2,
            false => 1,
        };
        if changed.voters() < voters_min {
            return Err(refused(&format!(
                "fewer than {voters_min} servers would vote"
            )));
        }
        let next = crate::reconfiguration::ensemble(&changed).map_err(|error| refused(&error))?;
        match self.zab.is_synced_quorum(&next) {
            true => Ok(changed),
            false => Err(ZkError::NewConfigNoQuorum),
        }
    }

    /// Lets Zab know of a configuration that the transaction at `zxid` sets, or that was told of with its
    /// version for a zxid. Links go to its members too.
    pub(crate) fn note_configuration(&mut self, zxid: Zxid, membership: &Membership) {
        match ensemble(membership) {
            Ok(ensemble) => {
                self.input(Input::Configuration { zxid, ensemble });
                self.configure_links();
            }
            Err(error) => tracing::error!(%zxid, %error, "a configuration is no ensemble"),
        }
    }

    /// Takes a text that tells of a configuration; an older or bad one changes nothing.
    pub(crate) fn hear_configuration(&mut self, zxid: Option<Zxid>, text: &str) {
        match Membership::parse(text) {
            Ok(membership) => {
                let zxid = zxid.unwrap_or(Zxid(membership.version));
                if membership.version > self.zab.ensemble().newest_version() {
                    self.note_configuration(zxid, &membership);
                }
            }
            Err(error) => tracing::warn!(%error, "a configuration cannot be read"),
        }
    }

    /// In an election a peer tells which configuration it has activated.
    pub(crate) fn adopt_configuration(&mut self, text: &str) {
        if self.standing.has_leader() || text.is_empty() {
            return;
        }
        if let Ok(membership) = Membership::parse(text)
            && membership.version > self.zab.ensemble().version()
            && let Ok(ensemble) = ensemble(&membership)
        {
            self.input(Input::Adopt { ensemble });
        }
    }

    /// The znode of the configuration shows the one in force: a tree may come from a server that had another.
    pub(crate) fn show_configuration(&mut self) {
        let ensemble = self.zab.ensemble();
        let (text, version) = (Arc::clone(ensemble.text()), Zxid(ensemble.version()));
        if self.head.config() != Some(&text) {
            self.head.set_config(&text, version, self.now.wall_ms);
        }
    }

    /// The log may hold a reconfiguration that is not known to be committed.
    pub(crate) fn hear_recovered_configurations(&mut self) {
        let texts = self.tail.iter();
        let last = texts.filter_map(|it| Some((it.zxid, text_of_record(&it.bytes)?)));
        if let Some((zxid, text)) = last.last() {
            self.hear_configuration(Some(zxid), &text);
        }
    }

    /// A configuration has become active.
    pub(crate) fn configuration_activated(&mut self) {
        let text = Arc::clone(self.zab.ensemble().text());
        let version = Zxid(self.zab.ensemble().version());
        tracing::info!(config = %text, "configuration active");
        self.configure_links();
        // Whoever learned of it without its transaction shows it all the same.
        if !self.standing.proposes() {
            self.show_configuration();
            self.unpublished = true;
        }
        self.errands
            .push_back(Errand::KeepConfiguration { text, version });
    }

    /// Links go to the members of the configuration in force and of the one that is to follow.
    pub(crate) fn configure_links(&mut self) {
        let ensemble = self.zab.ensemble();
        let config = Arc::clone(ensemble.text());
        let mut members = BTreeMap::new();
        let texts = [Some(ensemble), ensemble.next()];
        for ensemble in texts.into_iter().flatten() {
            if let Ok(membership) = Membership::parse(ensemble.text()) {
                members.extend(peers(&membership));
            }
        }
        self.traffic
            .commands
            .push(PeerCommand::Configure { members, config });
    }
}
