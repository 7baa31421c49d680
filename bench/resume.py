"""How soon a server that was killed serves again: `resume`, `start`."""

import glob
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import live
from measure import BenchError
from peers import NBDPULL
from tracking import sparse

CLUSTER = 16 << 10
PRESERVED = {"nothing preserved": 0, "1 GiB": 1 << 30, "64 GiB": 64 << 30, "1 TiB": 1 << 40}
DISK_SIZE = 2 << 40
DISKS, JOBS, MACHINE_STEP = 200, 16, 10
SMALL_DISK = 64 << 20
ANSWER_SECONDS = 60

HEADER, WALL_TIME = 4096, 3072
PAGE_WORDS = 1 << 20


class Host:
    """A server with many machines of one disk each, which is killed and started again."""

    def __init__(self, directory: Path, disks: list[Path], options: list[str]):
        self.directory = directory
        self.options = options
        self.socket = directory / "run" / "live.sock"
        shutil.rmtree(directory / "state", ignore_errors=True)
        self.disks = disks
        for number, disk in enumerate(disks):
            (directory / f"{number}.xml").write_text(
                f"<domain type='kvm'><name>m{number}</name><devices>"
                "<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
                f"<source file='{disk}'/><target dev='vda' bus='virtio'/></disk></devices>"
                "</domain>\n", encoding="utf-8")
        self.log = (directory / "resume.log").open("wb")
        self.process = self.start(
            [text for number in range(len(disks))
             for text in ("--domain", str(directory / f"{number}.xml"))])
        answer(self.socket, "m0/vda")
        self.control = directory / "run" / "control.sock"

    def start(self, more: list[str] = ()) -> subprocess.Popen:
        return subprocess.Popen(
            [NBDPULL.path(), "serve", "--state-dir", str(self.directory / "state"), "--run-dir",
             str(self.directory / "run"), *self.options, *more],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def call(self, method: str, path: str, body: dict | None = None) -> dict:
        self.await_control()
        connection = live.ControlConnection(self.control)
        try:
            return connection.call(method, path, body)
        finally:
            connection.close()

    def await_control(self) -> None:
        """Machines are served before the control socket is."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
                if peer.connect_ex(str(self.control)) == 0:
                    return
            time.sleep(0.01)
        raise BenchError("no control socket")

    def begin(self, number: int) -> dict:
        place = self.directory / f"backup-{number}.sock"
        return self.call("POST", f"/v1/domains/m{number}/jobs", {
            "backupXML": "<domainbackup mode='pull'><server transport='unix' "
                         f"socket='{place}'/></domainbackup>"})

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        # Before, a signal ends it as a kill does.
        if self.process.poll() is None:
            self.await_control()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
        self.log.close()


def answer(place: Path, name: str) -> float:
    """Waits until the first read of an export is answered; when that was."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
                peer.settimeout(ANSWER_SECONDS)
                peer.connect(str(place))
                read_first(peer, name.encode())
                return time.monotonic()
        except OSError:
            time.sleep(0.0005)
    raise BenchError(f"no answer from '{name}'")


def read_first(peer: socket.socket, name: bytes) -> None:
    received(peer, 18)
    # Fixed newstyle, no zeroes; the option EXPORT_NAME; one read.
    peer.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(name)) + name)
    received(peer, 10)
    peer.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 0, 4096))
    received(peer, 16 + 4096)


def received(peer: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = peer.recv(count - len(found))
        if not more:
            raise OSError("the connection was closed")
        found += more
    return found


def preserve(job: str, scratch: Path, count: int) -> None:
    """Makes the ledger of a killed server say that so many bytes were preserved."""
    found = glob.glob(f"/dev/shm/nbdpull-*/jobs-*/{job}.0.ledger")
    if len(found) != 1:
        raise BenchError(f"the ledger of job {job} is not in memory")
    clusters = count // CLUSTER
    os.truncate(scratch, count)
    with open(found[0], "r+b", buffering=0) as ledger:
        for first in range(0, clusters, PAGE_WORDS):
            words = range(first + 2, min(first + PAGE_WORDS, clusters) + 2)
            ledger.seek(HEADER + first * 4)
            ledger.write(struct.pack(f"<{len(words)}I", *words))
        ledger.seek(WALL_TIME)
        ledger.write(struct.pack("<Q", time.time_ns()))


def scratch_of(directory: Path) -> Path:
    found = [path for path in directory.iterdir() if path.name.startswith("large.")
             and path.name != "large.img"]
    if len(found) != 1:
        raise BenchError(f"no scratch among {[path.name for path in directory.iterdir()]}")
    return found[0]


def resumes(directory: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """From the start of the program to the first answer of a machine's disk and of the job."""
    for case, count in PRESERVED.items():
        disk = sparse(directory / "large.img", DISK_SIZE)
        host = Host(directory, [disk], [])
        try:
            job = host.begin(0)["id"]
            host.kill()
            preserve(job, scratch_of(directory), count)
            started = time.monotonic()
            host.process = host.start()
            guest = answer(host.socket, "m0/vda")
            backup = answer(directory / "backup-0.sock", "vda")
            yield case, {"value": (backup - started) * 1e3, "guest": (guest - started) * 1e3}
        finally:
            host.close()
            # A stop may leave the job to the next server, which there is none.
            for left in directory.glob("large.img*"):
                left.unlink()


def await_greeting(place: Path) -> None:
    """The socket of a server that was killed takes connections for a moment yet, and is silent."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
                peer.settimeout(ANSWER_SECONDS)
                peer.connect(str(place))
                received(peer, 18)
                return
        except OSError:
            time.sleep(0.0005)
    raise BenchError(f"nobody listens on '{place}'")


def first_and_last(host: Host) -> tuple[float, float]:
    """When the first and the last of some machines were answered.

    One looks out for the server: twenty that do would take a processor from it.
    """
    await_greeting(host.socket)
    found: list[float] = []
    threads = [threading.Thread(target=lambda name: found.append(answer(host.socket, name)),
                                args=(f"m{number}/vda",)) for number in range(0, DISKS, MACHINE_STEP)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(found) != len(threads):
        raise BenchError("a machine was not answered")
    return min(found), max(found)


def starts(directory: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """The same of many disks, of which some have a job."""
    disks = [sparse(directory / f"disk-{number}.img", SMALL_DISK) for number in range(DISKS)]
    host = Host(directory, disks, [])
    try:
        for number in range(JOBS):
            host.begin(number)
        host.kill()
        started = time.monotonic()
        host.process = host.start()
        first, last = first_and_last(host)
        backup = max(answer(directory / f"backup-{number}.sock", "vda") for number in range(JOBS))
        yield f"{DISKS} disks, {JOBS} jobs", {
            "value": (backup - started) * 1e3, "guest": (first - started) * 1e3,
            "guests": (last - started) * 1e3}
    finally:
        host.close()
        for disk in disks:
            disk.unlink(missing_ok=True)
