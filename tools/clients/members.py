"""The members of an ensemble, to be killed and started again."""

import pathlib
import re
import time

import zkserver
from wire import Connection

PATIENCE_S = 60
TICK_MS = 500


class Ensemble:
    """Members by number, each a process; `server` gives a member's number the name of its server."""

    def __init__(self, server, directory, settings, voters=3, observers=0):
        numbers = range(1, voters + observers + 1)
        ports = {number: [zkserver.free_port() for _ in range(2)] for number in numbers}
        settings = {
            "tickTime": TICK_MS,
            "initLimit": 40,
            "syncLimit": 20,
            "maxSessionTimeout": 60_000,
            **settings,
        }
        for number in numbers:
            role = "observer" if number > voters else "participant"
            settings[f"server.{number}"] = f"127.0.0.1:{ports[number][0]}:{ports[number][1]}:{role}"
        self.members = {}
        for number in numbers:
            own = {**settings, "peerType": "observer"} if number > voters else settings
            member = zkserver.Server(server(number), pathlib.Path(directory) / f"member-{number}", own)
            (member.directory / "data/myid").write_text(f"{number}\n")
            self.members[number] = member

    def start(self, *numbers):
        for number in numbers or self.members:
            self.members[number].spawn()
        for number in numbers or self.members:
            self.wait(number, "leader", "follower", "observer")

    def kill(self, *numbers):
        for number in numbers:
            self.members[number].kill()

    def end(self):
        self.kill(*self.members)

    def port(self, number):
        return self.members[number].port

    def srvr(self, number):
        return zkserver.four_letter_word(self.port(number), "srvr")

    def mode(self, number):
        found = re.search(r"^Mode: (.*)$", self.srvr(number), re.MULTILINE)
        return found and found.group(1)

    def wait(self, number, *modes):
        wait(f"member {number} becomes {' or '.join(modes)}", lambda: self.mode(number) in modes)

    def one(self, mode):
        return next(number for number in self.members if self.mode(number) == mode)

    def metric(self, number, name):
        text = zkserver.four_letter_word(self.port(number), "mntr")
        found = re.search(rf"^zk_{name}\t(.*)$", text, re.MULTILINE)
        return found and found.group(1)

    def wait_until_forgotten(self, number, session):
        """Apache closes the connection of a session first, and expires it a little later."""
        words = lambda: zkserver.four_letter_word(self.port(number), "dump").split()
        wait(f"member {number} forgets a session", lambda: f"{session.number:#x}" not in words())

    def connect(self, number, **options):
        return Connection(self.port(number), **options)


def wait(what, condition):
    """Until the condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"this does not happen: {what}")
        time.sleep(0.05)
