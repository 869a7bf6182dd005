"""pytest plugin: kazoo's test harness on the server that `KAZOO_TEST_SERVER` names.

kazoo's harness starts Apache ensembles itself (`kazoo.testing.common`). This plugin leaves the
harness and the tests as they are and replaces two things: how a server process is started, and
the parts of its configuration that neither a standalone server nor these tests need (TLS, SASL,
Netty). It also writes one line per test to `KAZOO_TEST_RESULTS`, so that two runs can be compared.
"""

import os
import pathlib
import shutil
import sys

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
    self.standalone = zkserver.Server(
        SERVER, self.working_path, settings, port=self.server_info.client_port
    )
    self.standalone.start()
    self.process = self.standalone.process
    self._running = True


def stop(self):
    if self._running:
        self.standalone.stop()
        self._running = False


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
    lines = sorted(f"{name} {outcome}\n" for name, outcome in outcomes.items())
    pathlib.Path(os.environ["KAZOO_TEST_RESULTS"]).write_text("".join(lines))
