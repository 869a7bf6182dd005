"""A ZooKeeper server under test: Apache's or Ringkeeper's, started from an Apache `zoo.cfg`.

A server is named by one string, as in `--server`:

- `apache` is Apache ZooKeeper from the jars of Debian's `zookeeper` package (or of
  `APACHE_CLASSPATH`), with a fixed heap and without logging;
- anything else is a command line. `{config}` in it stands for the path of the `zoo.cfg`; without
  it the path is appended. `target/release/ringkeeper serve` is thus enough for Ringkeeper.

Servers listen on loopback only. Each gets its own directory, with `zoo.cfg`, `data` and
`server.log`.
"""

import itertools
import os
import pathlib
import random
import shlex
import signal
import socket
import subprocess
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
APACHE_JAR = "/usr/share/java/zookeeper.jar"

# What Apache reads as Java system properties only. Ringkeeper takes the same names as zoo.cfg keys,
# so `render` writes them to the file for it and `command` passes them to java for Apache.
SYSTEM_PROPERTIES = ("readonlymode.enabled", "jute.maxbuffer")


# Below the range that outgoing connections take theirs from, so that none takes one before its server starts.
PORTS = range(12_000, 32_000)
_next_ports = itertools.count(random.randrange(len(PORTS)))


def free_port(row=1):
    """The first of `row` ports in a row that nobody listens on right now; each call gives others."""
    free = 0
    for number in itertools.islice(_next_ports, 2 * len(PORTS)):
        port = PORTS[number % len(PORTS)]
        if port == PORTS[0]:
            free = 0
        free = free + 1 if is_free(port) else 0
        if free == row:
            return port - row + 1
    raise RuntimeError(f"no {row} ports in a row of {PORTS} are free on loopback")


def is_free(port):
    """Whether nobody listens on this port of loopback."""
    with socket.socket() as probe:
        # As servers do: what a server before left in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def is_apache(server):
    return server == "apache"


def default_server():
    """Ringkeeper's release binary, or the debug one when that is all there is."""
    for profile in ("release", "debug"):
        binary = TARGET / profile / "ringkeeper"
        if binary.exists():
            return f"{binary} serve"
    return f"{TARGET / 'release' / 'ringkeeper'} serve"


def command(server, config, properties=None):
    """The argument vector that starts `server` with the `zoo.cfg` at `config`."""
    if is_apache(server):
        classpath = os.environ.get("APACHE_CLASSPATH", APACHE_JAR)
        # The digest scheme decodes credentials in the JVM's default charset; clients send UTF-8.
        argv = ["java", "-Xms256m", "-Xmx1g", "-Dfile.encoding=UTF-8", "-cp", classpath]
        argv += [f"-D{key}={value}" for key, value in (properties or {}).items()]
        return argv + ["org.apache.zookeeper.server.quorum.QuorumPeerMain", str(config)]
    argv = shlex.split(server)
    if any("{config}" in word for word in argv):
        return [word.replace("{config}", str(config)) for word in argv]
    return argv + [str(config)]


def render(server, data_dir, port, settings):
    """The text of a `zoo.cfg`, and the Java system properties that go with it for Apache."""
    settings = {
        "tickTime": 2000,
        "dataDir": data_dir,
        "clientPort": port,
        "clientPortAddress": "127.0.0.1",
        "maxClientCnxns": 0,
        "admin.enableServer": "false",
        "4lw.commands.whitelist": "*",
        **settings,
    }
    properties = {}
    if is_apache(server):
        properties = {key: settings.pop(key) for key in SYSTEM_PROPERTIES if key in settings}
    text = "".join(f"{key}={value}\n" for key, value in settings.items())
    return text, properties


class Server:
    """One server process and its directory."""

    def __init__(self, server, directory, settings=None, port=None):
        self.server = server
        self.directory = pathlib.Path(directory).resolve()
        self.port = port or free_port()
        self.process = None
        data_dir = self.directory / "data"
        data_dir.mkdir(parents=True, exist_ok=True)
        text, self.properties = render(server, data_dir, self.port, settings or {})
        self.config = self.directory / "zoo.cfg"
        self.config.write_text(text)

    def spawn(self):
        """Starts the process and does not wait."""
        log = open(self.directory / "server.log", "ab")
        self.process = subprocess.Popen(
            command(self.server, self.config, self.properties),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
        )
        log.close()

    def start(self, timeout_s=60):
        """Starts the process and waits until it serves clients."""
        self.spawn()
        self.wait_until_serving(timeout_s)

    def wait_until_serving(self, timeout_s=60):
        """Waits until a process that was spawned serves clients."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.tail()}")
            if "Mode:" in four_letter_word(self.port, "srvr"):
                return
            time.sleep(0.02)
        raise RuntimeError(f"the server does not serve after {timeout_s} s:\n{self.tail()}")

    def kill(self):
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self):
        """SIGTERM, and SIGKILL for one that does not obey."""
        self._end(signal.SIGTERM)

    def _end(self, signal_number):
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def tail(self, lines=30):
        log = self.directory / "server.log"
        if not log.exists():
            return ""
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def four_letter_word(port, word, timeout_s=2):
    """The server's answer, or "" when there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
            connection.sendall(word.encode())
            chunks = []
            while chunk := connection.recv(65536):
                chunks.append(chunk)
            return b"".join(chunks).decode(errors="replace")
    except OSError:
        return ""
