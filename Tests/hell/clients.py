"""Clients that come back when their server was killed, and its control socket."""

import errno
import http.client
import json
import random
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import nbd

from oracle import BLOCK, History

PATIENCE = 60
PAUSE = 0.02
CHUNK = 256 << 10


class Failure(Exception):
    """Something that must not happen to a client."""


class Cut(Exception):
    """The connection was lost before the answer, and whether the call was carried out is not known; or it is to
    be asked again."""


class Refused(Exception):
    """The server's own refusal."""


# MARK: Control

class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path):
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call(path: Path, method: str, place: str, body: dict | None = None) -> dict:
    """One request: its answer, Refused, or Cut."""
    connection = _Connection(path)
    try:
        connection.request(method, place, json.dumps(body) if body is not None else None,
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException) as problem:
        raise Cut(f"{method} {place}: {problem!r}") from problem
    finally:
        connection.close()
    if response.status == 503 and b'"server-restarting"' in text:
        raise Cut(f"{method} {place}: the server is being replaced: to be asked again")
    if response.status >= 300:
        raise Refused(f"{method} {place}: {response.status} {text.decode(errors='replace')[:500]}")
    return json.loads(text) if text else {}


def patient(path: Path, method: str, place: str, body: dict | None = None) -> dict:
    """The same for what may be asked again."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return call(path, method, place, body)
        except Cut as problem:
            if time.monotonic() > end:
                raise Failure(f"no answer within {PATIENCE} s: {problem}") from problem
            time.sleep(PAUSE)


# MARK: A machine

class Writer(threading.Thread):
    """A machine that writes to a part of its disk, and asks again when its server was killed."""

    def __init__(self, place: Path, name: str, history: History, part: range, seed: int, fail):
        super().__init__(name=f"writer {name}", daemon=True)
        self._place, self._export = place, name.encode()
        self._history, self._part = history, part
        self._random = random.Random(seed)
        self._fail = fail
        self._peer: socket.socket | None = None
        self._stopping = threading.Event()
        self.count = self.reconnects = 0
        self.longest = 0.0

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._step()
            self._ask(3, 0, b"", 0)
        except Exception as problem:  # Whatever it is, the run has failed.
            self._fail(f"{self.name}: {problem}")
        finally:
            self._close()

    def _step(self) -> None:
        count = self._random.choice((1, 1, 1, 2, 4, 8))
        first = self._random.randrange(self._part.start, self._part.stop - count)
        data, entries = self._history.issue(first, count)
        begun = time.monotonic()
        self._ask(1, first * BLOCK, data, len(data))
        now = time.monotonic()
        for entry in entries:
            entry[1] = now
        self.count += 1
        self.longest = max(self.longest, now - begun)
        time.sleep(self._random.random() * 0.004)

    def _ask(self, command: int, offset: int, data: bytes, length: int) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                if self._peer is None:
                    self._connect()
                self._peer.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, self.count, offset,
                                               length) + data)
                error = struct.unpack(">I", _received(self._peer, 16)[4:8])[0]
            except OSError as problem:
                self._close()
                if time.monotonic() > end:
                    raise Failure(f"no answer within {PATIENCE} s: {problem}") from problem
                time.sleep(PAUSE)
                continue
            if error:
                raise Failure(f"command {command} at {offset} failed with {error}")
            return

    def _connect(self) -> None:
        self._peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._peer.settimeout(PATIENCE)
        self._peer.connect(str(self._place))
        _received(self._peer, 18)
        self._peer.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(self._export)) + self._export)
        _received(self._peer, 10)
        self.reconnects += 1

    def _close(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None


def _received(peer: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = peer.recv(count - len(found))
        if not more:
            raise OSError("the connection was closed")
        found += more
    return found


# MARK: A backup client

class Puller:
    """Reads a job's export, over as many servers as it takes."""

    def __init__(self, uri: str, bitmap: str | None = None):
        self._uri, self._bitmap = uri, bitmap
        self._handle: nbd.NBD | None = None
        self.reconnects = -1

    def _again(self, what: str, body):
        end = time.monotonic() + PATIENCE
        while True:
            try:
                if self._handle is None:
                    self._connect()
                return body(self._handle)
            except nbd.Error as problem:
                handle, self._handle = self._handle, None
                # An error from a server that is there is its answer. libnbd says ENOTCONN, which no server can,
                # and stays ready when the kernel has told it of a reset before it has ended the connection.
                is_answer = handle is not None and handle.aio_is_ready() and problem.errnum != errno.ENOTCONN
                if is_answer or time.monotonic() > end:
                    raise Failure(f"{what} of {self._uri}: {problem}") from problem
                time.sleep(PAUSE)

    def _connect(self) -> None:
        handle = nbd.NBD()
        handle.set_uri_allow_local_file(True)
        if self._bitmap:
            handle.add_meta_context(self._context)
        handle.connect_uri(self._uri)
        self._handle = handle
        self.reconnects += 1

    @property
    def _context(self) -> str:
        return "qemu:dirty-bitmap:" + (self._bitmap or "")

    def size(self) -> int:
        return self._again("size", lambda handle: handle.get_size())

    def read(self, offset: int, count: int) -> bytes:
        return bytes(self._again("read", lambda handle: handle.pread(count, offset)))

    def dirty(self, size: int) -> list[tuple[int, int]]:
        """Extents that changed, as offset and length."""
        found: list[tuple[int, int]] = []
        position = 0
        while position < size:
            entries: list[int] = []

            def take(context, offset, values, error):
                if context == self._context:
                    entries[:] = values
                return 0

            self._again("map", lambda handle: handle.block_status(size - position, position, take))
            for length, flags in zip(entries[::2], entries[1::2]):
                if flags & 1:
                    found.append((position, length))
                position += length
            if not entries:
                raise Failure(f"{self._uri} answers no extents")
        return found

    def pull(self, base: bytes | None = None, pause: float = 0) -> bytes:
        """The whole disk, or what has changed over a base; with a pause after each piece."""
        size = self.size()
        image = bytearray(base if base is not None else bytes(size))
        for offset, length in self.dirty(size) if base is not None else [(0, size)]:
            for start in range(offset, offset + length, CHUNK):
                count = min(CHUNK, offset + length - start)
                image[start:start + count] = self.read(start, count)
                time.sleep(pause)
        return bytes(image)

    def close(self) -> None:
        self._handle = None


def nbdcopy(uri: str, target: Path) -> bytes | None:
    """The whole disk by nbdcopy, which does not come back: None when its server was killed."""
    target.unlink(missing_ok=True)
    run = subprocess.run(["nbdcopy", uri, str(target)], capture_output=True, timeout=PATIENCE,
                         check=False)
    found = target.read_bytes() if run.returncode == 0 else None
    target.unlink(missing_ok=True)
    return found
