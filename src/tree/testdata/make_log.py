#!/usr/bin/env python3
"""Makes apache-3.8.log: a transaction log written by Apache ZooKeeper, with its digests.

Needs Debian's `zookeeper` package and the kazoo client. Usage: make_log.py OUTPUT
"""
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException
from kazoo.security import ACL, Id, make_digest_acl


def start(folder, port):
    conf = os.path.join(folder, "zoo.cfg")
    with open(conf, "w") as out:
        out.write(f"dataDir={folder}\nclientPort={port}\nclientPortAddress=127.0.0.1\n"
                  "tickTime=500\nadmin.enableServer=false\n4lw.commands.whitelist=*\n")
    server = subprocess.Popen(
        ["java", "-cp", "/etc/zookeeper/conf:/usr/share/java/*",
         "-Dzookeeper.extendedTypesEnabled=true", "-Dznode.container.checkIntervalMs=500", "-Dzookeeper.preAllocSize=64",
         "-Dzookeeper.4lw.commands.whitelist=*",
         "-Dlog4j.configuration=file:/dev/null", "-Dfile.encoding=UTF-8",
         "org.apache.zookeeper.server.quorum.QuorumPeerMain", conf],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 30
    while time.time() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return server
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server does not start")


def attempt(call, *args, **kwargs):
    try:
        return call(*args, **kwargs)
    except KazooException:
        return None


def multi(client, names, rng):
    txn = client.transaction()
    for _ in range(rng.randint(1, 4)):
        path = rng.choice(names)
        kind = rng.randrange(4)
        if kind == 0:
            txn.create(path, b"m" * rng.randrange(20), ephemeral=rng.random() < 0.3)
        elif kind == 1:
            txn.delete(path)
        elif kind == 2:
            txn.set_data(path, b"M" * rng.randrange(20))
        else:
            txn.check(path, rng.randrange(3))
    attempt(txn.commit)


def work(port, rng, rounds):
    names = [f"/{a}" for a in "abcd"] + [f"/{a}/{b}" for a in "abcd" for b in "xyz\u00e9"]
    names += [f"/{a}/x/{c}" for a in "abcd" for c in range(3)]
    acls = [None, [ACL(31, Id("world", "anyone")), ACL(1, Id("ip", "127.0.0.1"))],
            [make_digest_acl("u", "p", all=True), ACL(31, Id("world", "anyone"))]]
    clients = []
    for _ in range(rounds):
        while len(clients) < 3:
            client = KazooClient(f"127.0.0.1:{port}", timeout=10)
            client.start()
            clients.append(client)
        client = rng.choice(clients)
        path = rng.choice(names)
        data = bytes(rng.randrange(256) for _ in range(rng.choice([0, 0, 3, 30, 300, 6000])))
        kind = rng.randrange(100)
        if kind < 40:
            attempt(client.create, path, data, acl=rng.choice(acls), ephemeral=rng.random() < 0.3,
                    sequence=rng.random() < 0.2, include_data=rng.random() < 0.3)
        elif kind < 60:
            attempt(client.set, path, data, version=rng.choice([-1, -1, -1, 0, 1]))
        elif kind < 75:
            attempt(client.delete, path)
        elif kind < 82:
            attempt(client.set_acls, path, rng.choice(acls[1:]))
        elif kind < 94:
            multi(client, names, rng)
        elif kind < 97:
            attempt(client.set, "/", data)
        else:
            clients.remove(client)
            client.stop()
            client.close()
    return clients


def special(client):
    """What is rare: the root's ACL, quotas, null data, deep and long paths."""
    client.set_acls("/", [ACL(31, Id("world", "anyone")), ACL(1, Id("world", "anyone"))])
    client.ensure_path("/q/inner")
    client.create("/q/inner/data", b"x" * 50)
    client.ensure_path("/zookeeper/quota/q")
    client.create("/zookeeper/quota/q/zookeeper_limits", b"count=100,bytes=10000")
    client.create("/zookeeper/quota/q/zookeeper_stats", b"count=0,bytes=0")
    client.create("/q/inner/more", b"y" * 7)
    client.set("/q/inner/data", b"z" * 9)
    client.delete("/q/inner/more")
    client.create("/zookeeper/other", b"o")
    client.set("/zookeeper", b"proc")
    client.ensure_path("/" + "/".join(["deep"] * 60))
    client.create("/" + "n" * 3000, b"long")


def string(text):
    raw = text.encode()
    return struct.pack("!i", len(raw)) + raw


def raw_call(sock, op, body):
    raw = struct.pack("!ii", 1, op) + body
    sock.sendall(struct.pack("!i", len(raw)) + raw)
    (length,) = struct.unpack("!i", sock.recv(4, socket.MSG_WAITALL))
    return struct.unpack("!iqi", sock.recv(length, socket.MSG_WAITALL)[:16])[2]


def extended(port):
    """Containers and TTL znodes, which kazoo has no call for; they expire on their own."""
    sock = socket.create_connection(("127.0.0.1", port))
    hello = struct.pack("!iqiqi", 0, 0, 10000, 0, 16) + bytes(16) + b"\0"
    sock.sendall(struct.pack("!i", len(hello)) + hello)
    (length,) = struct.unpack("!i", sock.recv(4, socket.MSG_WAITALL))
    sock.recv(length, socket.MSG_WAITALL)
    acl = struct.pack("!ii", 1, 31) + string("world") + string("anyone")

    def create(op, path, flags, after=b""):
        return raw_call(sock, op, string(path) + struct.pack("!i", -1) + acl
                        + struct.pack("!i", flags) + after)

    assert create(19, "/container", 4) == 0
    assert create(1, "/container/child", 0) == 0
    assert create(21, "/ttl", 5, struct.pack("!q", 100)) == 0
    assert create(21, "/ttl-long", 5, struct.pack("!q", (1 << 40) - 1)) == 0
    assert create(19, "/container-that-stays", 4) == 0
    assert raw_call(sock, 2, string("/container/child") + struct.pack("!i", -1)) == 0
    time.sleep(2.5)
    assert raw_call(sock, 3, string("/container") + b"\0") == -101
    assert raw_call(sock, 3, string("/ttl") + b"\0") == -101
    assert raw_call(sock, -11, b"") == 0
    sock.close()


def four_letters(port, word):
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(word)
    answer = b""
    while part := sock.recv(4096):
        answer += part
    return answer.decode()


def main():
    rng = random.Random(11)
    with tempfile.TemporaryDirectory() as folder:
        probe = socket.socket()
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        server = start(folder, port)
        try:
            clients = work(port, rng, 400)
            special(clients[0])
            extended(port)
            clients += work(port, rng, 200)
            stats = clients[0].get("/zookeeper/quota/q/zookeeper_stats")[0].decode()
            mntr = four_letters(port, b"mntr")
            for client in clients:
                # No closeSession: the mntr figures are those of the log's end.
                client._connection._write_sock.close()
        finally:
            server.kill()
            server.wait()
        logs = sorted(os.listdir(os.path.join(folder, "version-2")))
        logs = [name for name in logs if name.startswith("log.")]
        assert len(logs) == 1, logs
        with open(os.path.join(folder, "version-2", logs[0]), "rb") as log:
            raw = log.read()
    with open(sys.argv[1], "wb") as out:
        out.write(raw.rstrip(b"\0"))
    print("stats", stats)
    for line in mntr.splitlines():
        if any(key in line for key in ("znode_count", "ephemerals_count", "data_size", "digest")):
            print(line)


main()
