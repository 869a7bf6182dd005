//! What a shard does with the frames of a connection: the connect request, then requests.
//!
//! The header is read in place; a write goes on to the replica core as a slice of its frame, a read
//! is answered here at once, unless the session waits for a write.

use std::sync::Arc;

use bytes::Bytes;
use ringkeeper_member::{ClientKey, ClientMessage, Standing, WriteMessage};
use ringkeeper_proto::connect::ConnectRequest;
use ringkeeper_proto::jute::{WriteJute, put_frame};
use ringkeeper_proto::reply::{ReplyHeader, put_header_only};
use ringkeeper_proto::request::{Request, RequestHeader};
use ringkeeper_proto::{OpCode, Reader, SessionId, Xid, ZkError, Zxid};
use ringkeeper_transport::FrameDecoder;
use ringkeeper_tree::acl;
use ringkeeper_tree::session::{check_password, negotiate};

use crate::client::{Pending, Stage, WaitingRead};
use crate::clock;
use crate::four_letter;
use crate::shard::{Next, Shard, mark_dirty};

impl Shard {
    /// Takes the frames that `decoder` holds for a connection, as far as they may be taken now.
    pub(crate) fn take_frames(&mut self, key: ClientKey, decoder: &mut FrameDecoder) -> Next {
        self.catch_up();
        let next = self.frames(key, decoder);
        self.tell_outstanding();
        self.flush();
        next
    }

    fn frames(&mut self, key: ClientKey, decoder: &mut FrameDecoder) -> Next {
        let now_us = clock::monotonic_us();
        loop {
            let Some(client) = self.clients.get_mut(key) else {
                return Next::End;
            };
            if client.stage == Stage::Closing {
                return Next::End;
            }
            if client.stage == Stage::Opened
                && let Some(word) = decoder.peek_four()
                && four_letter::is_word(word)
            {
                return Next::FourLetterWord(word);
            }
            if !self.ready_to_read(key) {
                return Next::Pause;
            }
            let frame = match decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Next::Receive,
                Err(error) => return self.refuse(key, &format!("{error}")),
            };
            let taken = self.frame(key, frame, now_us);
            if let Err(reason) = taken {
                return self.refuse(key, &reason);
            }
        }
    }

    /// Ends a connection whose bytes cannot be answered.
    fn refuse(&mut self, key: ClientKey, reason: &str) -> Next {
        if let Some(client) = self.clients.get_mut(key) {
            tracing::info!(peer = %client.peer, session = %client.session, reason, "closing connection");
        }
        self.end(key);
        Next::End
    }

    fn frame(&mut self, key: ClientKey, frame: Bytes, now_us: u64) -> Result<(), String> {
        self.stats.received += 1;
        let Some(client) = self.clients.get_mut(key) else {
            return Ok(());
        };
        client.stats.received += 1;
        if client.stage == Stage::Opened {
            return self.connect(key, &frame);
        }
        let (header, body) =
            RequestHeader::split(&frame).map_err(|error| format!("request header: {error}"))?;
        let (xid, code) = (header.xid(), header.op_code());
        let body = frame.slice_ref(body);
        match OpCode::from_code(code) {
            Some(OpCode::Auth) => self.auth(key, xid, &body),
            Some(OpCode::Sasl) => self.sasl(key, xid, &body),
            Some(op) if is_valid(op) => {
                // ZK: auth and SASL packets do not keep a session alive.
                if let Some(touch) = &client.touch {
                    touch.touch(now_us / 1000);
                }
                let identities = Arc::clone(&client.identities);
                self.request(
                    key,
                    WaitingRead {
                        xid,
                        op,
                        body,
                        identities,
                        arrived_us: now_us,
                    },
                )
            }
            _ => {
                self.unimplemented(key, xid);
                Err(format!("operation {code} is not known"))
            }
        }
    }

    fn connect(&mut self, key: ClientKey, frame: &[u8]) -> Result<(), String> {
        let mut reader = Reader::new(frame);
        let request = ConnectRequest::decode(&mut reader)
            .map_err(|error| format!("connect request: {error}"))?;
        if !self.standing.is_serving() {
            return Err("this server has no leader yet".into());
        }
        if self.standing == Standing::ReadOnly {
            self.admits_read_only(&request)?;
        }
        let ours = self.tree.zxid();
        if request.last_zxid_seen.to_wire() > ours.to_wire() {
            return Err(format!(
                "the client has seen zxid {} and this server only {ours}: it must try another server",
                request.last_zxid_seen
            ));
        }
        if !self
            .counts
            .takes_connect(request.session == SessionId::NONE)
        {
            return Err("too many connect requests (connection_throttle_tokens)".into());
        }
        let timeout_ms = negotiate(
            request.timeout_ms,
            self.settings.session_timeout_ms_min,
            self.settings.session_timeout_ms_max,
        );
        let Some(client) = self.clients.get_mut(key) else {
            return Ok(());
        };
        client.knows_read_only = request.read_only.is_some();
        client.stage = Stage::Connecting;
        if request.session == SessionId::NONE {
            self.ask(ClientMessage::NewSession {
                from: key,
                timeout_ms,
            });
        } else if check_password(request.session, request.password) {
            let session = request.session;
            self.ask(ClientMessage::Reconnect {
                from: key,
                session,
                timeout_ms,
            });
        } else {
            tracing::info!(peer = %client.peer, session = %request.session, "wrong session password");
            self.refuse_session(key);
        }
        Ok(())
    }

    /// Whether this server, which is read-only, can be of use to who asks for a session.
    ///
    /// ZK: ReadOnlyZooKeeperServer. Who has a session that all servers know keeps it for when they are back.
    fn admits_read_only(&self, request: &ConnectRequest<'_>) -> Result<(), String> {
        let is_global = self.tree.session_timeout(request.session).is_some();
        let reason = match request.read_only {
            Some(true) if is_global => "its session is known to all servers",
            Some(true) if self.settings.local_sessions() => return Ok(()),
            // Apache answers a frame that is no answer, or lets in a session that nobody knows.
            Some(true) => "localSessionsEnabled is not set",
            Some(false) | None => "the client has not asked for a read-only server",
        };
        Err(format!("this server is read-only, and {reason}"))
    }

    fn auth(&mut self, key: ClientKey, xid: Xid, body: &[u8]) -> Result<(), String> {
        let Ok(Request::Auth { scheme, auth, .. }) = Request::decode(OpCode::Auth, body) else {
            return Err("auth packet cannot be read".into());
        };
        let Some(client) = self.clients.get_mut(key) else {
            return Ok(());
        };
        let outcome = acl::authenticate(scheme, auth, client.peer.ip(), &self.settings.tree);
        let reply = match &outcome {
            Ok(_) => Ok(()),
            Err(_) => Err(ZkError::AuthFailed),
        };
        // ZK: an auth reply has zxid 0 and does not wait for the requests before it.
        put_header_only(
            ReplyHeader::new(xid, Zxid::ZERO, reply),
            &mut client.output.queue(),
        );
        mark_dirty(client, &mut self.dirty);
        match outcome {
            Ok(proved) => {
                client.prove(proved);
                Ok(())
            }
            Err(_) => Err(format!("authentication failed for scheme {scheme:?}")),
        }
    }

    // ZK: without SASL configured there is nothing to prove, and the answer is a null token.
    fn sasl(&mut self, key: ClientKey, xid: Xid, body: &[u8]) -> Result<(), String> {
        Request::decode(OpCode::Sasl, body).map_err(|error| format!("SASL token: {error}"))?;
        let Some(client) = self.clients.get_mut(key) else {
            return Ok(());
        };
        put_frame(&mut client.output.queue(), |out| {
            ReplyHeader::new(xid, Zxid::ZERO, Ok(())).encode(out);
            out.put_buffer(None);
        });
        mark_dirty(client, &mut self.dirty);
        Ok(())
    }

    fn unimplemented(&mut self, key: ClientKey, xid: Xid) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        // ZK: UnimplementedRequestProcessor sends the zxid of a request that never got one.
        let header = ReplyHeader::new(xid, Zxid::from_wire(-1), Err(ZkError::Unimplemented));
        put_header_only(header, &mut client.output.queue());
        mark_dirty(client, &mut self.dirty);
    }

    fn request(&mut self, key: ClientKey, request: WaitingRead) -> Result<(), String> {
        let Some(client) = self.clients.get_mut(key) else {
            return Ok(());
        };
        if request.op.is_write() || request.op == OpCode::Sync {
            return self.forward(key, request);
        }
        if client.pending.is_empty() {
            self.answer_read(key, &request);
        } else {
            self.outstanding += 1;
            client.pending.push_back(Pending::Read(request));
        }
        Ok(())
    }

    /// Sends a write, or a sync, to the replica core.
    fn forward(&mut self, key: ClientKey, request: WaitingRead) -> Result<(), String> {
        let Some(client) = self.clients.get_mut(key) else {
            return Ok(());
        };
        let WaitingRead {
            xid,
            op,
            body,
            identities,
            arrived_us,
        } = request;
        let large_bytes = self.counts.started_large(body.len())?;
        self.outstanding += 1;
        let keep_before = client.ends_with_read();
        // A sync's reply repeats its path, so its body is kept here.
        let sync = (op == OpCode::Sync).then(|| body.clone());
        client.pending.push_back(Pending::Write {
            op,
            sync,
            large_bytes,
            arrived_us,
        });
        let session = client.session;
        self.ask(ClientMessage::Write(WriteMessage {
            from: key,
            session,
            xid,
            op,
            body,
            identities,
            keep_before,
            arrived_us,
        }));
        Ok(())
    }
}

// ZK: Request.isValid. Apache lets clients ask for two things more that are not theirs to ask for:
// createSession, which breaks the session that asks, and deleteContainer, which no ACL guards
// (docs/compatibility.md).
const fn is_valid(op: OpCode) -> bool {
    !matches!(
        op,
        OpCode::Notification
            | OpCode::Check
            | OpCode::Error
            | OpCode::CreateSession
            | OpCode::DeleteContainer
    )
}
