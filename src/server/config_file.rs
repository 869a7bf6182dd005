//! Reads a configuration and what lies beside it; what it means is `ringkeeper-config`'s business.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use ringkeeper_config::{Beside, Loaded, RawConfig};

use crate::fatal::Reason;

/// A longer file is not a configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads `file`, or takes the built-in configuration when there is none, and applies the assignments of the command line.
///
/// # Errors
/// When a file cannot be read, or with every problem found in them; the context says that it is the configuration.
pub(crate) fn load(file: Option<&Path>, assignments: &[String]) -> Result<Loaded> {
    read(file, assignments).context(Reason::Configuration)
}

fn read(file: Option<&Path>, assignments: &[String]) -> Result<Loaded> {
    let mut raw = match file {
        Some(path) => parse(path)?,
        None => RawConfig::embedded(),
    };
    for assignment in assignments {
        raw.set(assignment).map_err(anyhow::Error::msg)?;
    }
    let dynamic = raw
        .dynamic_config_file()
        .map(|path| parse(&path))
        .transpose()?;
    let my_id = match raw.data_dir() {
        Some(directory) => read_my_id(&directory.join("myid"))?,
        None => None,
    };
    let mut loaded = Loaded::new(&raw, &Beside { my_id, dynamic })?;
    loaded.config.files.config_file = file.map(Path::to_owned);
    Ok(loaded)
}

/// Writes down a configuration that has become active, as Apache does: the membership goes to a dynamic file with
/// its version in its name, and the configuration file points there. What it was before is kept beside
/// it.
///
/// # Errors
/// What the system says.
pub(crate) fn keep_membership(file: &Path, text: &str, version: u64) -> Result<()> {
    let old = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let permissions = fs::metadata(file)?.permissions();
    let replace = |path: &Path, text: &str| replace(path, text, permissions.clone());
    let beside = |suffix: &str| {
        let mut name = file.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let dynamic = beside(&format!(".dynamic.{version:x}"));
    let members: String = text
        .lines()
        .filter(|line| !line.starts_with("version="))
        .flat_map(|line| [line, "\n"])
        .collect();
    replace(&dynamic, &members)?;
    let is_member_key = |line: &&str| {
        let key = line.split(['=', ':', ' ', '\t']).next().unwrap_or_default();
        let keys = ["server.", "group.", "weight.", "dynamicConfigFile"];
        keys.iter().any(|it| key.starts_with(it))
    };
    let mut new: String = old
        .lines()
        .filter(|line| !is_member_key(&line.trim_start()))
        .flat_map(|line| [line, "\n"])
        .collect();
    _ = writeln!(new, "dynamicConfigFile={}", dynamic.display());
    replace(&beside(".bak"), &old)?;
    replace(file, &new)
}

/// Writes a file beside its place, durably, and puts it there.
fn replace(path: &Path, text: &str, permissions: Permissions) -> Result<()> {
    let dir = path.parent().filter(|dir| *dir != Path::new(""));
    let dir = dir.unwrap_or_else(|| Path::new("."));
    let mut beside = tempfile::NamedTempFile::new_in(dir)
        .with_context(|| format!("make a file in {}", dir.display()))?;
    beside.write_all(text.as_bytes())?;
    beside.as_file().set_permissions(permissions)?;
    beside.as_file().sync_all()?;
    beside
        .persist(path)
        .with_context(|| format!("write {}", path.display()))?;
    File::open(dir)?.sync_all()?;
    Ok(())
}

fn parse(path: &Path) -> Result<RawConfig> {
    let bytes = read_bounded(path)
        .with_context(|| format!("read the configuration file {}", path.display()))?;
    RawConfig::parse(&path.display().to_string(), &bytes).map_err(anyhow::Error::msg)
}

/// A standalone server needs no `myid`, so only its absence is fine.
fn read_my_id(path: &Path) -> Result<Option<String>> {
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = read_bounded(path).with_context(|| format!("read {}", path.display()))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, anyhow::Error> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!(io::Error::other(format!(
            "it is longer than {FILE_BYTES_MAX} bytes"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_with_its_dynamic_file_and_myid() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("zoo.cfg.dynamic"), "server.7=host:2888:3888;2191\n").unwrap();
        fs::write(at("myid"), "7\n").unwrap();
        let text = format!(
            "dataDir={}\ndynamicConfigFile={}\n",
            directory.path().display(),
            at("zoo.cfg.dynamic").display()
        );
        fs::write(at("zoo.cfg"), text).unwrap();
        let loaded = load(Some(&at("zoo.cfg")), &["snapCount=7".to_owned()]).unwrap();
        assert_eq!(loaded.config.files.my_id, Some(7));
        assert_eq!(loaded.config.clients.address.port, 2191);
        assert_eq!(loaded.config.snapshots.txns_min, 7);
    }

    #[test]
    fn failures_carry_their_reason_and_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zoo.cfg");
        let failure = |assignments: &[String]| {
            let error = load(Some(&path), assignments).unwrap_err();
            assert_eq!(Reason::of(&error), Reason::Configuration);
            format!("{error:#}")
        };
        assert!(
            failure(&[]).contains("zoo.cfg: No such file"),
            "{}",
            failure(&[])
        );
        fs::write(&path, "x".repeat(2 << 20)).unwrap();
        assert!(failure(&[]).contains("longer than"), "{}", failure(&[]));
        fs::write(&path, "clientPort=2181\nsslQuorum=true\n").unwrap();
        assert!(
            failure(&[]).contains("zoo.cfg:2: sslQuorum asks for TLS"),
            "{}",
            failure(&[])
        );
        let members = "server.1=a:1:2\nserver.2=b:1:2\nserver.3=c:1:2\ninitLimit=5\nsyncLimit=2\n";
        let text = format!(
            "dataDir={}\nclientPort=2181\n{members}",
            directory.path().display()
        );
        fs::write(&path, text).unwrap();
        fs::write(directory.path().join("myid"), "4\n").unwrap();
        assert!(
            failure(&[]).contains("there is no line server.4"),
            "{}",
            failure(&[])
        );
        fs::write(directory.path().join("myid"), "2\n").unwrap();
        let peers = load(Some(&path), &[]).unwrap().config.peers.unwrap();
        assert_eq!((peers.id, peers.membership.members.len()), (2, 3));
        assert!(failure(&["snapCount".to_owned()]).contains("not of the form key=value"));
    }

    #[test]
    fn a_membership_is_written_down_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zoo.cfg");
        let data = format!("dataDir={}\n", directory.path().display());
        let text = format!(
            "# ours\n{data}initLimit=5\nsyncLimit=2\nserver.1=a:1:2;11\nserver.2=b:1:2;11\nserver.3=c:1:2;11\n"
        );
        fs::write(&path, &text).unwrap();
        fs::write(directory.path().join("myid"), "1\n").unwrap();
        let members = "server.1=a:1:2:participant;0.0.0.0:11\nserver.4=d:1:2:participant;0.0.0.0:11\nversion=30000000a";
        keep_membership(&path, members, 0x3_0000_000a).unwrap();
        let kept = fs::read_to_string(&path).unwrap();
        assert!(kept.starts_with(&format!(
            "# ours\n{data}initLimit=5\nsyncLimit=2\ndynamicConfigFile="
        )));
        assert_eq!(
            fs::read_to_string(directory.path().join("zoo.cfg.bak")).unwrap(),
            text
        );
        let membership = load(Some(&path), &[])
            .unwrap()
            .config
            .peers
            .unwrap()
            .membership;
        assert_eq!(membership.version, 0x3_0000_000a);
        assert_eq!(membership.members.keys().collect::<Vec<_>>(), [&1, &4]);
        assert_eq!(membership.text(), members);
    }

    #[test]
    fn without_a_file_the_built_in_configuration_holds() {
        let loaded = load(None, &[]).unwrap();
        assert_eq!(loaded.config.clients.address.to_string(), "127.0.0.1:2181");
        assert!(loaded.config.words.is_allowed("mntr"));
    }
}
