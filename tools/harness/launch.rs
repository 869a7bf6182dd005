//! How a server is started: a command line and the settings that go into its `zoo.cfg`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Where Debian's `zookeeper` package keeps Apache's server; its manifest names the other jars.
const APACHE_JAR: &str = "/usr/share/java/zookeeper.jar";
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const APACHE_MAIN: &str = "org.apache.zookeeper.server.quorum.QuorumPeerMain";

/// Settings that Apache reads as Java system properties only, under exactly these names. Ringkeeper
/// takes them from the file (the last one without its beginning).
const SYSTEM_PROPERTIES: [&str; 3] = [
    "readonlymode.enabled",
    "jute.maxbuffer",
    "zookeeper.multiAddress.enabled",
];

/// One kind of server: how its process is started and what is special in its settings.
#[derive(Clone, Debug)]
pub struct Launch {
    /// What reports call it.
    pub name: String,
    kind: Kind,
    settings: Vec<(String, String)>,
    /// Where it serves clients.
    host: IpAddr,
    /// The words before its command line.
    enter: Vec<String>,
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
        let mut argv: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let Some(program) = argv.first_mut() else {
            bail!("the server's command line is empty");
        };
        if program.contains('/') {
            // Servers run in their own directories.
            let path = std::path::absolute(&*program)?;
            *program = path.display().to_string();
        }
        let name = Path::new(program).file_name().map_or_else(
            || program.clone(),
            |name| name.to_string_lossy().into_owned(),
        );
        Ok(Self {
            name,
            kind: Kind::Command(argv),
            settings: Vec::new(),
            host: LOOPBACK,
            enter: Vec::new(),
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
            host: LOOPBACK,
            enter: Vec::new(),
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

    /// Serves clients at `host` instead of loopback; `enter` is a command, the words of its command line, that
    /// becomes (exec) the server in the place where that address is.
    pub fn run_at(&mut self, host: IpAddr, enter: Vec<String>) {
        self.host = host;
        self.enter = enter;
    }

    /// Where it serves clients.
    pub const fn host(&self) -> IpAddr {
        self.host
    }

    /// The program of a server that is a command line; that of Apache's is `java`.
    pub fn program(&self) -> &str {
        match &self.kind {
            Kind::Apache { .. } => "java",
            Kind::Command(argv) => argv.first().map_or("", String::as_str),
        }
    }

    /// Starts as `other` does, with the settings and in the place that there are here.
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
            ("maxClientCnxns", "0"),
            ("admin.enableServer", "false"),
            ("4lw.commands.whitelist", "*"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        lines.push(("clientPortAddress".to_owned(), self.host.to_string()));
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
        let mut words = self.enter.clone();
        match &self.kind {
            Kind::Apache {
                classpath,
                heap,
                properties,
            } => {
                words.push("java".to_owned());
                words.push(format!("-Xmx{heap}"));
                // The digest scheme decodes credentials in the JVM's default charset.
                words.push("-Dfile.encoding=UTF-8".to_owned());
                for (key, value) in properties {
                    words.push(format!("-D{key}={value}"));
                }
                for (key, value) in &self.settings {
                    if SYSTEM_PROPERTIES.contains(&key.as_str()) {
                        words.push(format!("-D{key}={value}"));
                    }
                }
                words.extend(["-cp", classpath, APACHE_MAIN].map(str::to_owned));
                words.push(config.display().to_string());
            }
            Kind::Command(argv) => {
                let path = config.display().to_string();
                words.extend(argv.iter().map(|word| word.replace("{config}", &path)));
                if !argv.iter().any(|word| word.contains("{config}")) {
                    words.push(path);
                }
            }
        }
        let mut words = words.iter();
        let mut command = Command::new(words.next().map_or("", String::as_str));
        command.args(words);
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
        let relative = Launch::parse("target/ringkeeper serve").unwrap();
        let program = relative.command(Path::new("/x/zoo.cfg"));
        assert!(Path::new(program.get_program()).is_absolute());
    }

    #[test]
    fn a_server_elsewhere_is_entered_and_serves_there() {
        let mut launch = Launch::parse("ringkeeper serve").unwrap();
        let host = IpAddr::from([10, 0, 0, 7]);
        launch.run_at(host, vec!["enter".to_owned(), "there".to_owned()]);
        let command = launch.command(Path::new("/x/zoo.cfg"));
        assert_eq!(command.get_program(), "enter");
        let args: Vec<_> = command.get_args().collect();
        assert_eq!(args, ["there", "ringkeeper", "serve", "/x/zoo.cfg"]);
        let config = launch.config(Path::new("/d"), 7);
        assert!(config.contains("clientPortAddress=10.0.0.7\n"), "{config}");
        assert_eq!(launch.program(), "ringkeeper");
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
