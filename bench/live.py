"""A disk that is written to while it is backed up: `live-job` and `begin`."""

import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from measure import BenchError, Server, fio_arguments, run_client, run_fio, timed
from peers import NBDPULL, QEMU_STORAGE_DAEMON, Export, Peer

CLUSTER = 64 << 10
DEPTH = 8
BEGINS_PER_ROUND = 10
DOMAIN = "bench"

IDLE = "no job"
FIRST_TOUCH = "first touch"
PULLED = "while pulled"

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

    def __init__(self, disk: Path, directory: Path):
        run = directory / "run"
        self._control_path = run / "control.sock"
        shutil.rmtree(directory / "state", ignore_errors=True)
        self._server = Server(
            NBDPULL.key,
            [NBDPULL.path(), "serve", "--state-dir", str(directory / "state"), "--run-dir",
             str(run), "--name", DOMAIN, "--disk", f"vda={disk}"],
            directory, socket_path=self._control_path)
        self.uri = ""
        self.pid = 0

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

    def information(self) -> dict:
        return self._control.call("GET", f"/v1/domains/{DOMAIN}/job")

    def end(self) -> None:
        """Ends the job; BenchError when it had broken, since its figures are void then."""
        information = self.information()
        self._control.call("POST", f"/v1/domains/{DOMAIN}/job/end", {})
        if information.get("state") != "running":
            raise BenchError(f"the backup job was not running at its end: {information}")


def first_touch_log(directory: Path, size: int) -> Path:
    """A fio log with one 4 KiB write to every cluster, in random order."""
    path = directory / "first-touch.fio"
    clusters = list(range(size // CLUSTER))
    random.shuffle(clusters)
    places = (cluster * CLUSTER + 4096 * random.randrange(CLUSTER // 4096) for cluster in clusters)
    path.write_text("fio version 2 iolog\nnbd add\nnbd open\n"
                    + "".join(f"nbd write {place} 4096\n" for place in places) + "nbd close\n",
                    encoding="ascii")
    return path


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


def live_job(
    peer: Peer, files, directory: Path, size: int, seconds: float
) -> Iterator[tuple[str, dict[str, float]]]:
    """The three cases in order; each begins with the disk's file written back."""
    if peer is NBDPULL:
        yield from nbdpull_job(files, directory, size, seconds)
    else:
        yield from qemu_job(files, directory, size, seconds)


def writes(uri: str, size: int, seconds: float, pid: int) -> dict[str, float]:
    arguments = fio_arguments(uri, "randwrite", size, DEPTH) + timed(seconds)
    return run_fio(arguments, pid, timeout=seconds + 60)


def touches(uri: str, directory: Path, size: int, pid: int) -> dict[str, float]:
    log = first_touch_log(directory, size)
    arguments = fio_arguments(uri, "randwrite", size, DEPTH) + [f"--read_iolog={log}"]
    return run_fio(arguments, pid, timeout=120)


def writes_while_pulled(
    live: str, snapshot: str, size: int, seconds: float, pid: int
) -> dict[str, float]:
    with Puller(snapshot, size) as puller:
        sample = writes(live, size, seconds, pid)
    sample["pull"] = puller.gigabytes_per_second()
    # The server's and the client's work for the pull would be counted as the writes'.
    del sample["server_cpu"], sample["client_cpu"]
    return sample


def nbdpull_job(files, directory: Path, size: int, seconds: float):
    with LiveDisk(files.disk(), directory) as disk:
        yield IDLE, writes(disk.uri, size, seconds, disk.pid)
        files.disk()
        disk.begin()
        yield FIRST_TOUCH, touches(disk.uri, directory, size, disk.pid)
        disk.end()
        files.disk()
        snapshot = disk.begin()
        yield PULLED, writes_while_pulled(disk.uri, snapshot, size, seconds, disk.pid)
        disk.end()


def qemu_job(files, directory: Path, size: int, seconds: float):
    """qemu's copy-before-write filter; a new daemon and a new sparse scratch file per case."""
    export = Export(files.disk(), directory, socket=directory / "nbd.sock", writable=True)
    scratch = directory / "scratch.img"

    def daemon(arguments: list[str]) -> Server:
        scratch.unlink(missing_ok=True)
        with scratch.open("wb") as file:
            file.truncate(size)
        return Server(QEMU_STORAGE_DAEMON.key, arguments, directory, export.socket)

    filtered = QEMU_STORAGE_DAEMON.copy_before_write(export, scratch)
    try:
        with daemon(QEMU_STORAGE_DAEMON.arguments(export)) as server:
            yield IDLE, writes(export.uri(), size, seconds, server.pid)
        files.disk()
        with daemon(filtered) as server:
            yield FIRST_TOUCH, touches(export.uri("live"), directory, size, server.pid)
        files.disk()
        with daemon(filtered) as server:
            yield PULLED, writes_while_pulled(
                export.uri("live"), export.uri("snapshot"), size, seconds, server.pid)
    finally:
        scratch.unlink(missing_ok=True)


class Writer:
    """fio writing to a live export in the background, until stopped."""

    def __init__(self, uri: str, size: int):
        self._arguments = fio_arguments(uri, "randwrite", size, DEPTH) + timed(300)

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
            raise BenchError(f"fio ended while jobs were begun (status {ended})")


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
    """Milliseconds from the request to its answer, and microseconds writes were held."""
    started = time.monotonic()
    live.begin()
    latency = (time.monotonic() - started) * 1e3
    hold = live.information()["holdNanoseconds"] / 1e3
    live.end()
    return {"value": latency, "hold": hold}
