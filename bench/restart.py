"""How long a machine's writes wait while its server is replaced: by a takeover, and after a kill."""

import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from statistics import median

from live import DOMAIN, ControlConnection
from measure import BenchError
from peers import NBDPULL

BLOCK = 4 << 10
EVENTS_PER_ROUND = 8
SETTLE_SECONDS = 0.3
TAKEOVER, KILL = "takeover", "kill -9 and a start"


class Machine(threading.Thread):
    """Writes one block after the other, and connects again whenever its connection is lost."""

    def __init__(self, path: Path, export: str, blocks: int):
        super().__init__(daemon=True)
        self._path, self._export, self._blocks = str(path), export.encode(), blocks
        self._socket: socket.socket | None = None
        self._stopping = threading.Event()
        self.failure: Exception | None = None
        # When each write was begun, and how long it took, in seconds.
        self.writes: list[tuple[float, float]] = []

    def run(self) -> None:
        try:
            number = 0
            while not self._stopping.is_set():
                begun = time.monotonic()
                self._write(number, begun + 60)
                self.writes.append((begun, time.monotonic() - begun))
                number += 1
        except Exception as problem:  # told by whoever waits for this thread
            self.failure = problem

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        if self.failure is not None:
            raise BenchError(f"a write failed: {self.failure!r}") from self.failure

    def longest(self, since: float) -> float:
        """The longest write that was begun, or under way, from then on, in milliseconds."""
        return 1000 * max(took for begun, took in self.writes if begun + took >= since)

    def _write(self, number: int, deadline: float) -> None:
        header = struct.pack(">IHHQQI", 0x25609513, 0, 1, number,
                             number * 7 % self._blocks * BLOCK, BLOCK)
        data = bytes([number & 255]) * BLOCK
        while True:
            try:
                if self._socket is None:
                    self._connect()
                self._socket.sendall(header + data)
                magic, error, cookie = struct.unpack(">IIQ", self._receive(16))
                if (magic, error, cookie) != (0x67446698, 0, number):
                    raise BenchError(f"write {number}: reply {magic:x}, error {error}")
                return
            except OSError:
                if self._socket is not None:
                    self._socket.close()
                self._socket = None
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.0005)

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self._path)
        self._socket = connection
        self._receive(18)
        name = struct.pack(">I", len(self._export)) + self._export + b"\0\0"
        connection.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(name))
                           + name)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self._receive(20))
            self._receive(length)
            if kind == 1:
                return
            if kind & 1 << 31:
                raise BenchError(f"export {self._export.decode()}: option reply {kind:x}")

    def _receive(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            part = self._socket.recv(count - len(found))
            if not part:
                raise ConnectionError("the server has closed the connection")
            found += part
        return found


class Servers:
    """Servers of one disk that follow each other."""

    def __init__(self, disk: Path, directory: Path):
        self._directory, self._disk = directory, disk
        self.run = directory / "run"
        self._log = directory / "server.log"
        shutil.rmtree(directory / "state", ignore_errors=True)
        shutil.rmtree(self.run, ignore_errors=True)
        self._log.write_text("", encoding="utf-8")
        self._process = self._start()

    def _start(self, *options: str) -> subprocess.Popen:
        ready = self._ready()
        with self._log.open("a") as log:
            process = subprocess.Popen(
                [NBDPULL.path(), "serve", "--state-dir", str(self._directory / "state"),
                 "--run-dir", str(self.run), "--name", DOMAIN, "--disk", f"vda={self._disk}",
                 *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 40
        while self._ready() == ready:
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"the server did not start: {self._log.read_text()[-500:]}")
            time.sleep(0.002)
        return process

    def _ready(self) -> int:
        return self._log.read_text(encoding="utf-8").count("nbdpull: ready")

    def begin(self) -> None:
        control = ControlConnection(self.run / "control.sock")
        control.call("POST", f"/v1/domains/{DOMAIN}/jobs", {})
        control.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process = self._start()

    def take_over(self) -> None:
        old = self._process
        self._process = self._start("--takeover")
        if old.wait(10) != 0:
            raise BenchError(f"the server did not make way: status {old.returncode}")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(30) != 0:
            raise BenchError(f"the server did not stop: {self._log.read_text()[-500:]}")

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def pauses(disk: Path, directory: Path, size: int) -> list[tuple[str, dict[str, float]]]:
    """The longest write around each event: its median and the longest of a round."""
    samples = []
    for case in (TAKEOVER, KILL):
        servers = Servers(disk, directory)
        try:
            servers.begin()
            machine = Machine(servers.run / "live.sock", f"{DOMAIN}/vda", size // BLOCK)
            machine.start()
            found = []
            for _ in range(EVENTS_PER_ROUND):
                time.sleep(SETTLE_SECONDS)
                since = time.monotonic()
                servers.take_over() if case == TAKEOVER else servers.kill()
                time.sleep(SETTLE_SECONDS)
                found.append(machine.longest(since))
            machine.stop()
            servers.stop()
        finally:
            servers.end()
        quiet = sorted(1000 * took for _, took in machine.writes)
        samples.append((case, {"value": median(found), "longest": max(found),
                               "usual": quiet[len(quiet) // 2]}))
    return samples
