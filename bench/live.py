"""A disk that is backed up while it is written to, served by nbdpull or by qemu."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measure import BenchError, Server, fio_arguments, run_client, timed
from peers import NBDPULL, QEMU_STORAGE_DAEMON, Export, Peer

DEPTH = 8
BEGINS_PER_ROUND = 10
DOMAIN = "bench"

PEERS = [NBDPULL, QEMU_STORAGE_DAEMON]


class ControlConnection(http.client.HTTPConnection):
    """HTTP over the server's control socket."""

    def __init__(self, path: Path):
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def call(self, method: str, path: str, body: dict | None = None) -> dict:
        """One request; the answer's JSON, or BenchError with the server's own message."""
        try:
            self.request(method, path, json.dumps(body) if body is not None else None,
                         {"Content-Type": "application/json"})
            response = self.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as problem:
            raise BenchError(f"{method} {path} on the control socket: {problem!r}") from problem
        if response.status >= 300:
            raise BenchError(f"{method} {path}: status {response.status}, "
                             f"{text.decode(errors='replace')[:300]}")
        return json.loads(text) if text else {}


class LiveDisk:
    """nbdpull serving one disk, with a connection to its control socket."""

    def __init__(self, disk: Path, directory: Path, direct: bool = False,
                 more: tuple[str, ...] = ()):
        run = directory / "run"
        self._control_path = run / "control.sock"
        shutil.rmtree(directory / "state", ignore_errors=True)
        self._server = Server(
            NBDPULL.key,
            [NBDPULL.path(), "serve", "--state-dir", str(directory / "state"), "--run-dir",
             str(run), *more, *self._domain(disk, directory, direct)],
            directory, socket_path=self._control_path)
        self.uri = ""
        self.pid = 0

    @staticmethod
    def _domain(disk: Path, directory: Path, direct: bool) -> list[str]:
        if not direct:
            return ["--name", DOMAIN, "--disk", f"vda={disk}"]
        definition = directory / "domain.xml"
        definition.write_text(
            f"<domain type='kvm'><name>{DOMAIN}</name><devices><disk type='file' device='disk'>"
            f"<driver name='qemu' type='raw' cache='none'/><source file='{disk}'/>"
            "<target dev='vda'/></disk></devices></domain>\n", encoding="utf-8")
        return ["--domain", str(definition)]

    def __enter__(self) -> "LiveDisk":
        self.pid = self._server.__enter__().pid
        try:
            self._control = ControlConnection(self._control_path)
            disks = self._control.call("GET", f"/v1/domains/{DOMAIN}/disks")
            self.uri = disks["disks"][0]["uri"]
        except BaseException as problem:
            self._server.__exit__(type(problem), problem, None)
            raise
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._control.close()
        self._server.__exit__(kind, error, trace)

    def begin(self) -> str:
        """Begins a job of all disks; the URI of its backup export."""
        return self._control.call("POST", f"/v1/domains/{DOMAIN}/jobs", {})["exports"][0]["uri"]

    def call(self, method: str, path: str, body: dict | None = None) -> dict:
        return self._control.call(method, path, body)

    def information(self) -> dict:
        return self._control.call("GET", f"/v1/domains/{DOMAIN}/job")

    def end(self) -> float:
        """Ends the job; how many seconds the request took. BenchError when the job had broken,
        since its figures are void then."""
        information = self.information()
        started = time.monotonic()
        self._control.call("POST", f"/v1/domains/{DOMAIN}/job/end", {})
        took = time.monotonic() - started
        if information.get("state") != "running":
            raise BenchError(f"the backup job was not running at its end: {information}")
        return took


@dataclass(frozen=True)
class Target:
    """What a running server offers: the disk as a machine writes it, and as a backup reads it."""

    live: str
    backup: str
    pid: int


@contextmanager
def idle(peer: Peer, disk: Path, directory: Path) -> Iterator[Target]:
    """The disk served for writing, without a job."""
    if peer is NBDPULL:
        with LiveDisk(disk, directory) as served:
            yield Target(served.uri, "", served.pid)
        return
    export = Export(disk, directory, socket=directory / "nbd.sock", writable=True)
    with Server(peer.key, peer.arguments(export), directory, export.socket) as server:
        yield Target(export.uri(), "", server.pid)


@contextmanager
def begun(
    peer: Peer, disk: Path, directory: Path, direct: bool = False
) -> Iterator[Target]:
    """The disk served for writing with a backup job that has begun and is ended on leaving.

    qemu-storage-daemon has its copy-before-write filter and a new sparse scratch file.
    """
    if peer is NBDPULL:
        with LiveDisk(disk, directory, direct) as served:
            yield Target(served.uri, served.begin(), served.pid)
            served.end()
        return
    export = Export(disk, directory, socket=directory / "nbd.sock", writable=True, direct=direct)
    scratch = directory / "scratch.img"
    with scratch.open("wb") as file:
        file.truncate(disk.stat().st_size)
    try:
        arguments = QEMU_STORAGE_DAEMON.copy_before_write(export, scratch)
        with Server(peer.key, arguments, directory, export.socket) as server:
            yield Target(export.uri("live"), export.uri("snapshot"), server.pid)
    finally:
        scratch.unlink(missing_ok=True)


class Puller:
    """Reads a backup export again and again until stopped."""

    def __init__(self, uri: str, size: int):
        self._arguments = [shutil.which("nbdcopy"), uri, "null:"]
        self._size = size
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = 0.0
        self._problem = ""
        self._passes: list[float] = []

    def __enter__(self) -> "Puller":
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._stopping.set()
        self._thread.join(timeout=120)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                _, wall, _ = run_client(self._arguments, timeout=60)
            except BenchError as problem:
                self._problem = str(problem)
                return
            self._passes.append(wall)

    def gigabytes_per_second(self) -> float:
        """The median of the passes, all begun while the writes ran; BenchError if one failed."""
        if self._problem or not self._passes:
            raise BenchError(f"the pull failed: {self._problem or 'no pass was finished'}")
        return self._size / sorted(self._passes)[len(self._passes) // 2] / 1e9


class Writer:
    """fio writing to a live export in the background until stopped, as fast as it can or so
    many requests a second."""

    def __init__(self, uri: str, size: int, rate: int | None = None):
        # A thread, not a process: fio's processes leave the group that is killed in the end.
        self._arguments = fio_arguments(uri, "randwrite", size, DEPTH) + timed(300) + ["--thread"]
        if rate is not None:
            self._arguments.append(f"--rate_iops={rate}")

    def __enter__(self) -> "Writer":
        self._process = subprocess.Popen(
            self._arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(1)
        return self

    def __exit__(self, kind, error, trace) -> None:
        ended = self._process.poll()
        if ended is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=10)
        if ended is not None and error is None:
            raise BenchError(f"fio, which was to write all the time, ended (status {ended})")


def begins(disk: Path, directory: Path, size: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Jobs begun and ended, one after the other: first on an idle disk, then on a busy one."""
    with LiveDisk(disk, directory) as live:
        for _ in range(BEGINS_PER_ROUND):
            yield "idle disk", timed_begin(live)
        with Writer(live.uri, size):
            for _ in range(BEGINS_PER_ROUND):
                yield "busy disk", timed_begin(live)
                time.sleep(0.05)


def timed_begin(live: LiveDisk) -> dict[str, float]:
    """Milliseconds from the requests to begin and to end to their answers, and microseconds
    that writes were held."""
    started = time.monotonic()
    live.begin()
    latency = (time.monotonic() - started) * 1e3
    hold = live.information()["holdNanoseconds"] / 1e3
    ended = live.end()
    return {"value": latency, "end": ended * 1e3, "hold": hold}
