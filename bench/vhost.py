"""The guest's door: vhost-user-blk by nbdpull and by qemu, beside NBD and beside the file itself."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guest import FIRST_TOUCH, PULLED, first_touch_log
from harness import Files, Result, Settings, attempt, say, taking_part
from live import DOMAIN, LiveDisk, Puller
from measure import (BenchError, Server, fio_arguments, fio_job, latencies, run_client, run_fio,
                     timed, tree_cpu)
from pagecache import LARGE_PIECE, SMALL_PAGES, SMALL_PIECE, evict
from peers import NBDPULL, QEMU_STORAGE_DAEMON, REPOSITORY, Export

# Rows. Ours goes by the name that the report compares others with.
OURS, QEMU = NBDPULL.key, QEMU_STORAGE_DAEMON.key
OVER_NBD, PLAIN = "nbdpull over NBD", "io_uring on the file"
# A file takes one write after the other; no server gets more of them into the same folios.
LOOP = "pwrite on the file"

Sample = dict[str, float]


@dataclass(frozen=True)
class Load:
    """What a guest does; depth is that of each queue."""

    mode: str
    depth: int
    queues: int = 1
    block: int = 4 << 10
    polls: bool = False
    # In pieces of what size the disk was written before.
    piece: int = LARGE_PIECE

    @property
    def case(self) -> str:
        block = f"{self.block >> 10} KiB {self.mode}, {self.depth} in flight"
        block += f" on each of {self.queues} queues" if self.queues > 1 else ""
        if self.piece == SMALL_PIECE:
            block += f", {SMALL_PAGES}"
        return block + (", polling" if self.polls else "")

    @property
    def fio_mode(self) -> str:
        return f"rand{self.mode}"

    def arguments(self, socket: Path) -> list[str]:
        return [str(generator()), str(socket), f"--queues={self.queues}", f"--depth={self.depth}",
                f"--block={self.block}", f"--read={100 if self.mode == 'read' else 0}",
                "--wait=" + ("poll" if self.polls else "sleep"), "--indirect",
                f"--seed={time.monotonic_ns()}"]


BUFFERED = [Load("read", 1), Load("read", 1, polls=True), Load("read", 8), Load("read", 32),
            Load("read", 32, queues=2), Load("read", 16, block=64 << 10), Load("write", 1),
            Load("write", 8), Load("write", 32), Load("write", 32, queues=2),
            Load("write", 16, block=64 << 10),
            *(Load("write", depth, piece=SMALL_PIECE) for depth in (1, 8, 32))]
DIRECT = [Load(mode, depth, polls=polls)
          for mode in ("read", "write") for depth in (1, 32) for polls in (False, True)]
LIVE = Load("write", 8)


def generator() -> Path:
    """The load generator's executable."""
    named = os.environ.get("NBDPULL_VHOST_LOAD")
    return Path(named) if named else REPOSITORY / ".build/release/nbdpull-vhost-load"


def missing_generator() -> str | None:
    """Why the load generator cannot be used, or None."""
    if os.access(generator(), os.X_OK):
        return None
    return (f"{generator()} is missing (swift build -c release --product nbdpull-vhost-load, or "
            "name it in NBDPULL_VHOST_LOAD)")


def run_load(arguments: list[str], pid: int, timeout: float) -> Sample:
    """Runs the load generator: requests per second, latency, CPU microseconds per request."""
    before = tree_cpu(pid)
    output, _, client = run_client(arguments, timeout)
    time.sleep(0.05)
    server = tree_cpu(pid) - before
    try:
        found = json.loads(output)
    except ValueError as problem:
        raise BenchError(f"the load generator printed no result: {output}") from problem
    return {"value": found["iops"], "p50": found["p50"], "p99": found["p99"],
            "p99.9": found["p999"], "server_cpu": server * 1e6 / found["requests"],
            "client_cpu": client * 1e6 / found["requests"]}


# What serves the file.

@contextmanager
def nbdpull_vhost(disk: Path, directory: Path, direct: bool) -> Iterator[tuple[Path, int]]:
    socket = directory / "vhost.sock"
    mode = ["--cache", "none"] if direct else []
    arguments = [NBDPULL.path(), "export", "--vhost", str(socket), *mode, str(disk)]
    with Server(OURS, arguments, directory, socket) as server:
        yield socket, server.pid


def qemu_vhost_export(node: str, socket: Path) -> list[str]:
    return ["--export", f"type=vhost-user-blk,id=v0,node-name={node},writable=on,num-queues=2,"
                        f"addr.type=unix,addr.path={socket}"]


def qemu_file(name: str, path: Path, direct: bool) -> list[str]:
    cache = "on" if direct else "off"
    return ["--blockdev", f"driver=file,node-name={name},filename={path},aio=io_uring,"
                          f"cache.direct={cache},discard=unmap"]


class Silent(Server):
    """A server whose socket is not tried: it serves whoever comes first, and ends with it."""

    def _reachable(self) -> bool:
        return self._socket.exists()


@contextmanager
def qemu_vhost(disk: Path, directory: Path, direct: bool) -> Iterator[tuple[Path, int]]:
    socket = directory / "vhost.sock"
    arguments = [QEMU_STORAGE_DAEMON.path(), *qemu_file("disk", disk, direct),
                 *qemu_vhost_export("disk", socket)]
    with Silent(QEMU, arguments, directory, socket) as server:
        yield socket, server.pid


def over_vhost(serve, load: Load, disk: Path, settings: Settings, direct: bool) -> Sample:
    with serve(disk, settings.directory, direct) as (socket, pid):
        return run_load(load.arguments(socket) + [f"--seconds={settings.seconds:g}"], pid,
                        settings.seconds + 60)


def over_nbd(load: Load, disk: Path, settings: Settings, direct: bool) -> Sample:
    export = Export(disk, settings.directory, socket=settings.directory / "nbd.sock",
                    writable=True, direct=direct)
    arguments = fio_arguments(export.uri(), load.fio_mode, disk.stat().st_size, load.depth,
                              load.queues, load.block)
    with Server(OVER_NBD, NBDPULL.arguments(export), settings.directory,
                export.socket) as server:
        return run_fio(arguments + timed(settings.seconds), server.pid, settings.seconds + 60)


def on_the_file(load: Load, disk: Path, settings: Settings, engine: list[str]) -> Sample:
    """The same I/O by fio, without anybody between."""
    arguments = [shutil.which("fio"), "--name=bench", *engine,
                 f"--filename={disk}", f"--rw={load.fio_mode}", f"--bs={load.block}",
                 "--invalidate=0", "--output-format=json", "--thread", *timed(settings.seconds)]
    job, client = fio_job(arguments, settings.seconds + 60)
    side = job[load.mode]
    return {"value": side["iops"], **latencies(side["clat_ns"]["percentile"]),
            "client_cpu": client * 1e6 / side["total_ios"]}


# Scenarios.

def ready(result: Result) -> bool:
    """Whether the generator is there; which peers are not is said in the result."""
    taking_part([NBDPULL, QEMU_STORAGE_DAEMON], result)
    reason = missing_generator()
    if reason:
        result.errors.append(f"{result.name}: not run, {reason}")
    return reason is None


def run_sides(result: Result, settings: Settings, sides) -> None:
    """Case after case, each side in turn, round after round."""
    for number in range(1, settings.rounds + 1):
        for case, name, sample in sides():
            say(f"{result.name}: round {number} of {settings.rounds}, {case}, {name}")
            with attempt(result, f"{case}, {name}, round {number}"):
                result.add(name, case, sample())


def buffered(files: Files, settings: Settings, result: Result) -> None:
    """Through the page cache. The disk is written back before each run."""
    if not ready(result):
        return

    def disk_for(load: Load) -> Path:
        return files.disk(load.piece, is_for_reads=load.mode == "read")

    def sides():
        for load in BUFFERED:
            yield load.case, OURS, lambda: over_vhost(
                nbdpull_vhost, load, disk_for(load), settings, False)
            if QEMU_STORAGE_DAEMON.missing() is None:
                yield load.case, QEMU, lambda: over_vhost(
                    qemu_vhost, load, disk_for(load), settings, False)
            yield load.case, OVER_NBD, lambda: over_nbd(load, disk_for(load), settings, False)
            if load.mode == "write" and load.depth > 1 and load.queues == 1:
                yield load.case, LOOP, lambda: on_the_file(
                    load, disk_for(load), settings, ["--ioengine=psync"])
    run_sides(result, settings, sides)


def direct(files: Files, settings: Settings, result: Result) -> None:
    """Past the page cache, beside the same I/O without a server."""
    if not ready(result):
        return
    disk = files.disk()
    files.disk_went_direct()
    # With pages of the file in memory each write would have to look for them.
    evict(disk)

    def sides():
        for load in DIRECT:
            yield load.case, OURS, lambda: over_vhost(nbdpull_vhost, load, disk, settings, True)
            yield load.case, PLAIN, lambda: on_the_file(
                load, disk, settings,
                ["--ioengine=io_uring", "--direct=1", f"--iodepth={load.depth}"])
            if QEMU_STORAGE_DAEMON.missing() is None:
                yield load.case, QEMU, lambda: over_vhost(
                    qemu_vhost, load, disk, settings, True)
    run_sides(result, settings, sides)


@dataclass(frozen=True)
class Target:
    """A disk with a backup job that has begun."""

    socket: Path
    live: str
    backup: str
    pid: int


@contextmanager
def nbdpull_begun(disk: Path, directory: Path) -> Iterator[Target]:
    folder = directory / "vhost"
    with LiveDisk(disk, directory, more=("--vhost-dir", str(folder))) as served:
        socket = folder / f"{DOMAIN}-vda.sock"
        yield Target(socket, served.uri, served.begin(), served.pid)
        served.end()


@contextmanager
def qemu_begun(disk: Path, directory: Path) -> Iterator[Target]:
    """Its copy-before-write filter under the vhost export; the job's state over NBD."""
    socket, scratch = directory / "vhost.sock", directory / "scratch.img"
    export = Export(disk, directory, socket=directory / "nbd.sock")
    with scratch.open("wb") as file:
        file.truncate(disk.stat().st_size)
    arguments = [QEMU_STORAGE_DAEMON.path(), *qemu_file("disk", disk, False),
                 *qemu_file("scratch", scratch, False),
                 "--blockdev", "driver=copy-before-write,node-name=cbw,file=disk,target=scratch",
                 "--blockdev", "driver=snapshot-access,node-name=before,file=cbw",
                 "--nbd-server", QEMU_STORAGE_DAEMON.server(export),
                 "--export", "type=nbd,id=e1,node-name=before,name=snapshot,writable=off",
                 *qemu_vhost_export("cbw", socket)]
    try:
        with Silent(QEMU, arguments, directory, socket) as server:
            yield Target(socket, "", export.uri("snapshot"), server.pid)
    finally:
        scratch.unlink(missing_ok=True)


def live_job(piece: int):
    """The scenario with a disk that was written in pieces of so many bytes."""
    return lambda files, settings, result: guest_of_job(files, settings, result, piece)


def guest_of_job(files: Files, settings: Settings, result: Result, piece: int) -> None:
    """What a backup costs a guest: each write the first to its cluster, and while it is pulled."""
    if not ready(result):
        return
    size = files.disk_size

    def touched(begun) -> Sample:
        with begun(files.disk(piece), settings.directory) as target:
            return run_load(LIVE.arguments(target.socket) + ["--order=touch", "--stride=65536"],
                            target.pid, 300)

    def pulled(begun) -> Sample:
        with begun(files.disk(piece), settings.directory) as target:
            with Puller(target.backup, size) as puller:
                sample = run_load(
                    LIVE.arguments(target.socket) + [f"--seconds={settings.seconds:g}"],
                    target.pid, settings.seconds + 60)
            # The server's work for the pull would be counted as the writes'.
            del sample["server_cpu"], sample["client_cpu"]
            return {**sample, "pull": puller.gigabytes_per_second()}

    def touched_over_nbd() -> Sample:
        with nbdpull_begun(files.disk(piece), settings.directory) as target:
            log = first_touch_log(settings.directory, size)
            arguments = fio_arguments(target.live, "randwrite", size, LIVE.depth)
            return run_fio(arguments + [f"--read_iolog={log}"], target.pid, timeout=120)

    def sides():
        kinds = [(OURS, nbdpull_begun)]
        if QEMU_STORAGE_DAEMON.missing() is None:
            kinds.append((QEMU, qemu_begun))
        for case, sample in [(FIRST_TOUCH, touched), (PULLED, pulled)]:
            for name, begun in kinds:
                yield case, name, lambda: sample(begun)
        yield FIRST_TOUCH, OVER_NBD, touched_over_nbd
    run_sides(result, settings, sides)
