"""A ZooKeeper client that hides nothing: connect requests and requests as they stand on the wire."""

import socket
import struct

CREATE, DELETE, EXISTS, GET_DATA, SET_DATA, SET_ACL, SYNC, PING = 1, 2, 3, 4, 5, 7, 9, 11
GET_CHILDREN2, CHECK, MULTI, CREATE2, RECONFIG, CREATE_CONTAINER = 12, 13, 14, 15, 16, 19
CREATE_TTL, MULTI_READ, SET_WATCHES, GET_EPHEMERALS, ADD_WATCH = 21, 22, 101, 103, 106
WHO_AM_I, CLOSE_SESSION = 107, -11

PERSISTENT, EPHEMERAL, SEQUENTIAL, PERSISTENT_TTL = 0, 1, 2, 5


def buffer(value):
    """A byte buffer or a string."""
    value = value.encode() if isinstance(value, str) else value
    return struct.pack(">i", len(value)) + value


def open_acl():
    return struct.pack(">ii", 1, 31) + buffer("world") + buffer("anyone")


def create(path, flags=PERSISTENT, data=b"x"):
    return buffer(path) + buffer(data) + open_acl() + struct.pack(">i", flags)


def create_ttl(path, ttl_ms):
    return create(path, PERSISTENT_TTL) + struct.pack(">q", ttl_ms)


def set_data(path, data=b"y", version=-1):
    return buffer(path) + buffer(data) + struct.pack(">i", version)


def delete(path, version=-1):
    return buffer(path) + struct.pack(">i", version)


def read(path, watch=False):
    return buffer(path) + struct.pack(">?", watch)


def multi(*operations):
    """Of pairs of opcode and body."""
    parts = [struct.pack(">i?i", op, False, -1) + body for op, body in operations]
    return b"".join(parts) + struct.pack(">i?i", -1, True, -1)


class Closed(Exception):
    """The server has closed the connection."""


class Reply:
    """What a server answered to a request."""

    def __init__(self, frame):
        self.xid, self.zxid, self.error = struct.unpack(">iqi", frame[:16])
        self.body = frame[16:]

    def path(self):
        """Of create and create2."""
        (length,) = struct.unpack(">i", self.body[:4])
        return self.body[4 : 4 + length].decode()

    def children(self):
        """Of getChildren2."""
        (count,) = struct.unpack(">i", self.body[:4])
        names, at = [], 4
        for _ in range(count):
            (length,) = struct.unpack(">i", self.body[at : at + 4])
            names.append(self.body[at + 4 : at + 4 + length].decode())
            at += 4 + length
        return sorted(names)

    def multi_errors(self):
        """Of a multi that failed: the error of each operation."""
        errors, at = [], 0
        while at + 9 <= len(self.body):
            _, done, error = struct.unpack(">i?i", self.body[at : at + 9])
            if done:
                break
            errors.append(error)
            at += 9 + 4
        return errors


class Session:
    """A session's number and password."""

    def __init__(self, number=0, password=bytes(16)):
        self.number = number
        self.password = password


class Connection:
    """A connection, from its connect request on. `verdict` says what came of that: `accepted`, `expired` or
    `refused` (closed, or answered with what no client takes for an answer)."""

    def __init__(self, port, read_only=False, session=None, last_zxid=0, timeout_ms=10_000):
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.xid = 0
        self.events = []
        session = session or Session()
        request = struct.pack(">iqiq", 0, last_zxid, timeout_ms, session.number) + buffer(session.password)
        # Clients older than 3.4 do not know the field.
        request += b"" if read_only is None else struct.pack(">?", read_only)
        self.session, self.read_only, self.timeout_ms = None, None, 0
        try:
            self.send(request)
            frame = self.receive()
            _, self.timeout_ms, number, length = struct.unpack(">iiqi", frame[:20])
            self.session = Session(number, frame[20 : 20 + length])
            self.read_only = bool(frame[20 + length]) if len(frame) > 20 + length else None
            self.verdict = "accepted" if self.timeout_ms > 0 else "expired"
        except (Closed, struct.error):
            self.verdict = "refused"

    def send(self, body):
        try:
            self.socket.sendall(buffer(body))
        except OSError as error:
            raise Closed from error

    def receive(self):
        try:
            (length,) = struct.unpack(">i", self.exactly(4))
            return self.exactly(length)
        except OSError as error:
            raise Closed from error

    def exactly(self, length):
        parts = b""
        while len(parts) < length:
            part = self.socket.recv(length - len(parts))
            if not part:
                raise Closed
            parts += part
        return parts

    def ask(self, op, body=b""):
        """The reply to a request; events that come before it are kept."""
        self.xid += 1
        xid = -2 if op == PING else self.xid
        self.send(struct.pack(">ii", xid, op) + body)
        while True:
            reply = Reply(self.receive())
            if reply.xid != -1:
                return reply
            self.events.append(reply)

    def error(self, op, body=b""):
        return self.ask(op, body).error

    def is_closed(self, within_s=20):
        """Whether the server closes the connection, without being asked for anything."""
        self.socket.settimeout(within_s)
        try:
            while True:
                self.receive()
        except Closed as closed:
            return not isinstance(closed.__cause__, TimeoutError)
        finally:
            self.socket.settimeout(10)

    def close(self):
        self.socket.close()
