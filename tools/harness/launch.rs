//! How a server is started: a command line and the settings that go into its `zoo.cfg`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Where Debian's `zookeeper` package keeps Apache's server; its manifest names the other jars.
const APACHE_JAR: &str = "/usr/share/java/zookeeper.jar";
const APACHE_MAIN: &str = "org.apache.zookeeper.server.quorum.QuorumPeerMain";

/// Settings that Apache reads as Java system properties only, under exactly these names. Ringkeeper
/// takes them from the file.
const SYSTEM_PROPERTIES: [&str; 2] = ["readonlymode.enabled", "jute.maxbuffer"];

/// One kind of server: how its process is started and what is special in its settings.
#[derive(Clone, Debug)]
pub struct Launch {
    /// What reports call it.
    pub name: String,
    kind: Kind,
    settings: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
enum Kind {
    Apache {
        classpath: String,
        heap: String,
        /// Java system properties.
        properties: Vec<(String, String)>,
    },
    Command(Vec<String>),
}

impl Launch {
    /// The server that `text` names: `apache`, or a command line (split at blanks) in which
    /// `{config}` stands for the `zoo.cfg`; without it the path is appended.
    ///
    /// # Errors
    /// When Apache's jars are not found or the command line is empty.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "apache" {
            return Self::apache(None, "1g");
        }
        let argv: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let Some(program) = argv.first() else {
            bail!("the server's command line is empty");
        };
        let name = Path::new(program).file_name().map_or_else(
            || program.clone(),
            |name| name.to_string_lossy().into_owned(),
        );
        Ok(Self {
            name,
            kind: Kind::Command(argv),
            settings: Vec::new(),
        })
    }

    /// Apache ZooKeeper from `classpath` (default: Debian's package), without logging.
    ///
    /// # Errors
    /// When no jar is there.
    pub fn apache(classpath: Option<&str>, heap: &str) -> Result<Self> {
        let classpath = match classpath {
            Some(classpath) => classpath.to_owned(),
            None => {
                ensure!(
                    Path::new(APACHE_JAR).exists(),
                    "no {APACHE_JAR}: install Debian's package `zookeeper`, or name Apache's jars"
                );
                APACHE_JAR.to_owned()
            }
        };
        Ok(Self {
            name: "apache".to_owned(),
            kind: Kind::Apache {
                classpath,
                heap: heap.to_owned(),
                properties: Vec::new(),
            },
            settings: Vec::new(),
        })
    }

    /// Adds a line to the `zoo.cfg` of every server started so; later ones win over earlier ones.
    pub fn set(&mut self, key: &str, value: &str) {
        self.settings.retain(|(known, _)| known != key);
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    /// Sets a Java system property of Apache's server; other servers have none.
    pub fn set_property(&mut self, key: &str, value: &str) {
        if let Kind::Apache { properties, .. } = &mut self.kind {
            properties.push((key.to_owned(), value.to_owned()));
        }
    }

    /// Takes a line out again.
    pub fn unset(&mut self, key: &str) {
        self.settings.retain(|(known, _)| known != key);
    }

    /// Starts as `other` does, with the settings that there are here.
    pub fn become_like(&mut self, other: &Self) {
        self.name.clone_from(&other.name);
        self.kind = other.kind.clone();
    }

    /// Adds `key=value`.
    ///
    /// # Errors
    /// When there is no `=`.
    pub fn set_line(&mut self, line: &str) -> Result<()> {
        let (key, value) = line
            .split_once('=')
            .with_context(|| format!("{line:?} is not key=value"))?;
        self.set(key.trim(), value.trim());
        Ok(())
    }

    /// Whether it is Apache's.
    pub const fn is_apache(&self) -> bool {
        matches!(self.kind, Kind::Apache { .. })
    }

    /// The text of the `zoo.cfg` of a standalone server.
    pub fn config(&self, data_dir: &Path, port: u16) -> String {
        let mut lines: Vec<(String, String)> = [
            ("tickTime", "2000"),
            ("clientPortAddress", "127.0.0.1"),
            ("maxClientCnxns", "0"),
            ("admin.enableServer", "false"),
            ("4lw.commands.whitelist", "*"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        lines.push(("dataDir".to_owned(), data_dir.display().to_string()));
        lines.push(("clientPort".to_owned(), port.to_string()));
        for (key, value) in &self.settings {
            lines.retain(|(known, _)| known != key);
            if !(self.is_apache() && SYSTEM_PROPERTIES.contains(&key.as_str())) {
                lines.push((key.clone(), value.clone()));
            }
        }
        lines
            .iter()
            .map(|(key, value)| format!("{key}={value}\n"))
            .collect()
    }

    /// The command that starts the server on `config`.
    pub fn command(&self, config: &Path) -> Command {
        let mut command = match &self.kind {
            Kind::Apache {
                classpath,
                heap,
                properties,
            } => {
                let mut command = Command::new("java");
                command.arg(format!("-Xmx{heap}"));
                // The digest scheme decodes credentials in the JVM's default charset.
                command.arg("-Dfile.encoding=UTF-8");
                for (key, value) in properties {
                    command.arg(format!("-D{key}={value}"));
                }
                for (key, value) in &self.settings {
                    if SYSTEM_PROPERTIES.contains(&key.as_str()) {
                        command.arg(format!("-D{key}={value}"));
                    }
                }
                command.args(["-cp", classpath, APACHE_MAIN]).arg(config);
                command
            }
            Kind::Command(argv) => {
                let path = config.display().to_string();
                let mut words: Vec<String> = argv
                    .iter()
                    .map(|word| word.replace("{config}", &path))
                    .collect();
                if words == *argv {
                    words.push(path);
                }
                let mut command = Command::new(words.first().map_or("", String::as_str));
                command.args(words.iter().skip(1));
                command
            }
        };
        command.stdin(Stdio::null());
        command
    }

    /// What the program says of its own version, on one line; "" when it does not say.
    pub fn version(&self) -> String {
        let output = match &self.kind {
            Kind::Apache { .. } => Command::new("java").arg("-version").output(),
            Kind::Command(argv) => {
                let program = argv.first().map_or_else(PathBuf::new, PathBuf::from);
                Command::new(program).arg("--version").output()
            }
        };
        let Ok(output) = output else {
            return String::new();
        };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().next().unwrap_or_default().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_is_appended_unless_the_command_places_it() {
        let words = |text: &str| -> Vec<String> {
            let command = Launch::parse(text)
                .unwrap()
                .command(Path::new("/x/zoo.cfg"));
            command
                .get_args()
                .map(|arg| arg.to_string_lossy().into_owned())
                .collect()
        };
        assert_eq!(words("ringkeeper serve"), ["serve", "/x/zoo.cfg"]);
        assert_eq!(
            words("s --config={config} -v"),
            ["--config=/x/zoo.cfg", "-v"]
        );
        assert!(Launch::parse(" ").is_err());
    }

    #[test]
    fn later_settings_win() {
        let mut launch = Launch::parse("s").unwrap();
        launch.set_line("tickTime=200").unwrap();
        launch.set_line("tickTime = 300").unwrap();
        let config = launch.config(Path::new("/d"), 7);
        assert!(config.contains("tickTime=300\n"), "{config}");
        assert_eq!(config.matches("tickTime").count(), 1);
        assert!(launch.set_line("tickTime").is_err());
    }
}
