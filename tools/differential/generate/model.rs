//! What the generator believes of the tree: enough to aim requests at an outcome. Where it errs, a script
//! merely reaches something else than it aimed at; what counts is what the servers answer.

use std::collections::BTreeMap;

use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::{Acl, Id, OpCode, Perms, Request, ZkError};

/// What kind of znode it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Persistent,
    /// Owned by the session of this number.
    Ephemeral(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Znode {
    pub(crate) kind: Kind,
    pub(crate) version: i32,
    pub(crate) aversion: i32,
    pub(crate) creates: i32,
    pub(crate) children: usize,
    pub(crate) acl: Vec<Acl>,
}

/// Who makes a request.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    /// The number of its session.
    pub(crate) session: usize,
    pub(crate) ids: Vec<Id>,
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) root: String,
    pub(crate) znodes: BTreeMap<String, Znode>,
}

impl Model {
    pub(crate) fn new(root: &str) -> Self {
        let znode = Znode {
            kind: Kind::Persistent,
            version: 0,
            aversion: 0,
            creates: 0,
            children: 0,
            acl: Acl::open(),
        };
        Self {
            root: root.to_owned(),
            znodes: BTreeMap::from([(root.to_owned(), znode)]),
        }
    }

    /// Does what a request does; the path of a znode that it creates.
    pub(crate) fn apply(
        &mut self,
        who: &Who,
        request: &Request<'_>,
    ) -> Result<Option<String>, ZkError> {
        match request {
            Request::Create { op, create } => self.create(who, *op, create).map(Some),
            Request::Delete { path, version } => self.delete(who, path, *version).map(|()| None),
            Request::SetData { path, version, .. } => {
                let znode = self.znodes.get_mut(*path).ok_or(ZkError::NoNode)?;
                check_version(znode.version, *version)?;
                allowed(&znode.acl, Perms::WRITE, &who.ids)?;
                znode.version += 1;
                Ok(None)
            }
            Request::SetAcl { path, acl, version } => {
                let acl = fixed_up(
                    &acl.as_ref().map(|acl| acl.to_acls()).unwrap_or_default(),
                    &who.ids,
                )?;
                let znode = self.znodes.get_mut(*path).ok_or(ZkError::NoNode)?;
                allowed(&znode.acl, Perms::ADMIN, &who.ids)?;
                check_version(znode.aversion, *version)?;
                znode.aversion += 1;
                znode.acl = acl;
                Ok(None)
            }
            Request::Check { path, version } => {
                let znode = self.znodes.get(*path).ok_or(ZkError::NoNode)?;
                allowed(&znode.acl, Perms::READ, &who.ids)?;
                check_version(znode.version, *version)?;
                Ok(None)
            }
            Request::Multi(parts) => {
                let before = self.clone();
                for part in parts {
                    if let Err(error) = self.apply(who, part) {
                        *self = before;
                        return Err(error);
                    }
                }
                Ok(None)
            }
            Request::CloseSession => {
                self.end_session(who.session);
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Deletes what a session owns.
    pub(crate) fn end_session(&mut self, session: usize) {
        let owned: Vec<String> = self
            .znodes
            .iter()
            .filter(|(_, znode)| znode.kind == Kind::Ephemeral(session))
            .map(|(path, _)| path.clone())
            .collect();
        for path in owned {
            self.remove(&path);
        }
    }

    fn create(
        &mut self,
        who: &Who,
        op: OpCode,
        create: &CreateRequest<'_>,
    ) -> Result<String, ZkError> {
        let (parent, name) = create.path.rsplit_once('/').ok_or(ZkError::BadArguments)?;
        let is_flag_right = match op {
            OpCode::CreateTtl => matches!(create.flags, 5 | 6),
            OpCode::CreateContainer => create.flags == 4,
            _ => (0..=3).contains(&create.flags),
        };
        let is_sequential = matches!(create.flags, 2 | 3 | 6);
        if !is_flag_right || (name.is_empty() && !is_sequential) {
            return Err(ZkError::BadArguments);
        }
        let acl = fixed_up(
            &create
                .acl
                .as_ref()
                .map(|acl| acl.to_acls())
                .unwrap_or_default(),
            &who.ids,
        )?;
        let above = self.znodes.get(parent).ok_or(ZkError::NoNode)?;
        allowed(&above.acl, Perms::CREATE, &who.ids)?;
        let path = if is_sequential {
            format!("{}{:010}", create.path, above.creates)
        } else {
            create.path.to_owned()
        };
        if self.znodes.contains_key(&path) {
            return Err(ZkError::NodeExists);
        }
        if matches!(above.kind, Kind::Ephemeral(_)) {
            return Err(ZkError::NoChildrenForEphemerals);
        }
        let kind = if matches!(create.flags, 1 | 3) {
            Kind::Ephemeral(who.session)
        } else {
            Kind::Persistent
        };
        if let Some(above) = self.znodes.get_mut(parent) {
            above.creates += 1;
            above.children += 1;
        }
        let znode = Znode {
            kind,
            version: 0,
            aversion: 0,
            creates: 0,
            children: 0,
            acl,
        };
        self.znodes.insert(path.clone(), znode);
        Ok(path)
    }

    fn delete(&mut self, who: &Who, path: &str, version: i32) -> Result<(), ZkError> {
        let (parent, _) = path.rsplit_once('/').ok_or(ZkError::BadArguments)?;
        if let Some(above) = self.znodes.get(parent) {
            allowed(&above.acl, Perms::DELETE, &who.ids)?;
        }
        let znode = self.znodes.get(path).ok_or(ZkError::NoNode)?;
        check_version(znode.version, version)?;
        if znode.children > 0 {
            return Err(ZkError::NotEmpty);
        }
        self.remove(path);
        Ok(())
    }

    fn remove(&mut self, path: &str) {
        if self.znodes.remove(path).is_some()
            && let Some((parent, _)) = path.rsplit_once('/')
            && let Some(above) = self.znodes.get_mut(parent)
        {
            above.children = above.children.saturating_sub(1);
        }
    }
}

/// Whether `acl` allows any of `perms` to somebody with these identities.
pub(crate) fn allows(acl: &[Acl], perms: Perms, ids: &[Id]) -> bool {
    acl.is_empty()
        || ids.iter().any(|id| id.scheme == "super")
        || acl.iter().any(|entry| {
            entry.perms.allows(perms)
                && match entry.id.scheme.as_str() {
                    "world" => true,
                    "ip" => entry.id.id.starts_with("127."),
                    _ => ids.contains(&entry.id),
                }
        })
}

fn allowed(acl: &[Acl], perms: Perms, ids: &[Id]) -> Result<(), ZkError> {
    if allows(acl, perms, ids) {
        Ok(())
    } else {
        Err(ZkError::NoAuth)
    }
}

fn check_version(current: i32, wanted: i32) -> Result<(), ZkError> {
    if wanted == -1 || wanted == current {
        Ok(())
    } else {
        Err(ZkError::BadVersion)
    }
}

fn fixed_up(acl: &[Acl], ids: &[Id]) -> Result<Vec<Acl>, ZkError> {
    let mut fixed = Vec::new();
    for entry in acl {
        match entry.id.scheme.as_str() {
            "auth" => {
                let known = ids
                    .iter()
                    .filter(|id| id.scheme == "digest" || id.scheme == "super");
                let before = fixed.len();
                fixed.extend(known.map(|id| Acl {
                    perms: entry.perms,
                    id: id.clone(),
                }));
                if fixed.len() == before {
                    return Err(ZkError::InvalidAcl);
                }
            }
            "world" if entry.id.id == "anyone" => fixed.push(entry.clone()),
            "digest" if entry.id.id.split(':').count() == 2 => fixed.push(entry.clone()),
            "ip" if entry.id.id.split('.').count() == 4 => fixed.push(entry.clone()),
            _ => return Err(ZkError::InvalidAcl),
        }
    }
    if fixed.is_empty() {
        Err(ZkError::InvalidAcl)
    } else {
        Ok(fixed)
    }
}
