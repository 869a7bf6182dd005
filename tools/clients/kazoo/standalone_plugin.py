"""pytest plugin: kazoo's test harness on the server that `KAZOO_TEST_SERVER` names.

kazoo's harness starts Apache ensembles itself (`kazoo.testing.common`). This plugin leaves the
harness and the tests as they are and replaces two things: how a server process is started, and
the parts of its configuration that these tests do not need (TLS, SASL, Netty). It also writes one
line per test to `KAZOO_TEST_RESULTS`, so that two runs can be compared.

With `KAZOO_TEST_KILL_EVERY` members are killed one by one while the tests run, so many seconds after
the one before is back. What a client reports then, a lost connection, fails most tests, so failed
ones are run again (`--reruns`): a test must pass once within its attempts.
"""

import os
import pathlib
import shutil
import sys
import threading

import kazoo.testing.common as common

sys.path.insert(0, os.environ["KAZOO_TEST_CLIENTS_DIR"])
import zkserver  # noqa: E402

SERVER = os.environ["KAZOO_TEST_SERVER"]
# The digest of "super:test", as kazoo's harness passes it to java.
SUPER_DIGEST = "super:D/InIHSb7yEEbrWz8b9l71RjZJU="


def run(self):
    if self._running:
        return
    settings = {
        "DigestAuthenticationProvider.superDigest": SUPER_DIGEST,
        "readonlymode.enabled": "true",
    }
    for entry in self.configuration_entries:
        key, _, value = entry.partition("=")
        settings[key] = value
    if self.peers:
        settings.update(initLimit=10, syncLimit=5, peerType=self.server_info.peer_type)
        for peer in (self.server_info, *self.peers):
            settings[f"server.{peer.server_id}"] = (
                f"127.0.0.1:{peer.leader_port}:{peer.election_port}:{peer.peer_type}"
            )
    self.standalone = zkserver.Server(
        SERVER, self.working_path, settings, port=self.server_info.client_port
    )
    if self.peers:
        # One alone does not serve; kazoo's harness waits for a client to be served.
        (pathlib.Path(self.working_path) / "data/myid").write_text(f"{self.server_info.server_id}\n")
        self.standalone.spawn()
        members.append(self)
        kill_members_one_by_one()
    else:
        self.standalone.start()
    self.process = self.standalone.process
    self._running = True


def stop(self):
    with turn:
        if self._running:
            self.standalone.stop()
            self._running = False
            if self in members:
                members.remove(self)


# Members of the ensemble that run, and who may start and stop them.
members = []
turn = threading.RLock()
killer = None
over = threading.Event()
kills = 0


def kill_members_one_by_one():
    """Begins to, when the environment says so."""
    global killer
    seconds = float(os.environ.get("KAZOO_TEST_KILL_EVERY", 0))
    if seconds > 0 and killer is None:
        killer = threading.Thread(target=kill_until_over, args=(seconds,), daemon=True)
        killer.start()


def kill_until_over(seconds):
    global kills
    number = 0
    while not over.wait(seconds):
        with turn:
            # Tests stop members themselves: one more would be too many.
            if len(members) < 3:
                continue
            number += 1
            member = members[number % len(members)]
            if member.standalone.process.poll() is None:
                member.standalone.kill()
                kills += 1
                member.standalone.start()
                member.process = member.standalone.process


def reset(self):
    self.stop()
    data_dir = pathlib.Path(self.working_path, "data")
    shutil.rmtree(data_dir, True)
    data_dir.mkdir()


def get_logs(self, num_lines=100):
    return self.standalone.tail(num_lines).splitlines() if hasattr(self, "standalone") else []


common.ManagedZooKeeper.run = run
common.ManagedZooKeeper.stop = stop
common.ManagedZooKeeper.reset = reset
common.ManagedZooKeeper.get_logs = get_logs

outcomes = {}


def pytest_runtest_logreport(report):
    name = report.nodeid.split("kazoo/tests/")[-1]
    if report.when == "call" or report.outcome != "passed":
        # A failing teardown must not be hidden by a call that passed.
        if outcomes.get(name) != "failed":
            outcomes[name] = report.outcome


def pytest_sessionfinish(session):
    over.set()
    if killer is not None:
        killer.join()
        print(f"\n{kills} members were killed")
    lines = sorted(f"{name} {outcome}\n" for name, outcome in outcomes.items())
    pathlib.Path(os.environ["KAZOO_TEST_RESULTS"]).write_text("".join(lines))
