"""The scenarios: what is run against which servers, and in what order."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import live
import tracking
from credentials import make_credentials, missing_maker
from measure import BenchError, fio_arguments, free_port, pull, run_fio, serve, timed
from peers import (NBDPULL, READERS, TLS_READERS, WRITERS, Export, Peer, QemuNbd,
                   missing_client)

CHUNK = 8 << 20
WRITE_LIMIT = 1 << 30


@dataclass
class Settings:
    """How much is run, and where."""

    directory: Path
    rounds: int
    size: int
    seconds: float


@dataclass
class Row:
    """The samples of one server in one case of a scenario."""

    server: str
    case: str = ""
    samples: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Result:
    """What a scenario gave. `kind` says how its samples are read: pull, io, begin or map."""

    name: str
    title: str
    kind: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, server: str, case: str, sample: dict[str, float]) -> None:
        """Adds a sample to the server's row of this case, which is made when it is the first."""
        for row in self.rows:
            if (row.server, row.case) == (server, case):
                row.samples.append(sample)
                return
        self.rows.append(Row(server, case, [sample]))


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    kind: str
    clients: tuple[str, ...]
    run: Callable[["Files", Settings, Result], None]


class Files:
    """The files that are served: made once, when first wanted."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._source = settings.directory / "source.img"
        self._disk = settings.directory / "disk.img"

    def source(self) -> Path:
        """The read-only file: incompressible, and read once so that it is in the page cache."""
        if not self._source.exists():
            say(f"writing {self._settings.size >> 20} MiB of random data")
            with self._source.open("wb") as file:
                for offset in range(0, self._settings.size, CHUNK):
                    file.write(os.urandom(min(CHUNK, self._settings.size - offset)))
                file.flush()
                os.fsync(file.fileno())
        with self._source.open("rb", buffering=0) as file:
            while file.read(CHUNK):
                pass
        return self._source

    @property
    def disk_size(self) -> int:
        return min(self._settings.size, WRITE_LIMIT)

    def disk(self) -> Path:
        """The file that is written to: fully allocated, in the page cache, nothing left to
        write back."""
        if not self._disk.exists():
            with self.source().open("rb") as source, self._disk.open("wb") as disk:
                for _ in range(0, self.disk_size, CHUNK):
                    disk.write(source.read(CHUNK))
        with self._disk.open("rb+", buffering=0) as disk:
            os.fsync(disk.fileno())
            while disk.read(CHUNK):
                pass
        return self._disk


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def taking_part(peers: list[Peer], result: Result) -> list[Peer]:
    """The peers that are installed; the others are named in the result."""
    result.notes += [f"left out: {reason}" for peer in peers if (reason := peer.missing())]
    return [peer for peer in peers if peer.missing() is None]


def interleaved(
    peers: list[Peer], settings: Settings, result: Result
) -> Iterator[tuple[Peer, int]]:
    """Peer after peer, round after round: A B C A B C."""
    present = taking_part(peers, result)
    for number in range(1, settings.rounds + 1):
        for peer in present:
            say(f"{result.name}: round {number} of {settings.rounds}, {peer.key}")
            yield peer, number


def export_of(file: Path, settings: Settings, tcp: bool = False, writable: bool = False) -> Export:
    if tcp:
        return Export(file, settings.directory, port=free_port(), writable=writable)
    return Export(file, settings.directory, socket=settings.directory / "nbd.sock",
                  writable=writable)


def pulling(tcp: bool, connections: int) -> Callable[[Files, Settings, Result], None]:
    def run(files: Files, settings: Settings, result: Result) -> None:
        file = files.source()
        for peer, number in interleaved(READERS, settings, result):
            try:
                export = export_of(file, settings, tcp)
                with serve(peer, export) as server:
                    sample = pull(
                        export.uri(peer.export_name), settings.size, connections, server.pid)
                result.add(peer.key, "", sample)
            except (BenchError, OSError) as problem:
                result.errors.append(f"{result.name}, {peer.key}, round {number}: {problem}")
    return run


def pulling_secured(uses_key: bool) -> Callable[[Files, Settings, Result], None]:
    def run(files: Files, settings: Settings, result: Result) -> None:
        if not uses_key and (reason := missing_maker()):
            result.errors.append(f"{result.name}: not run, {reason}")
            return
        file = files.source()
        tls = make_credentials(settings.directory / "tls", uses_key)
        for peer, number in interleaved(TLS_READERS, settings, result):
            try:
                export = Export(file, settings.directory, port=free_port(), tls=tls)
                with serve(peer, export) as server:
                    sample = pull(export.uri(peer.export_name), settings.size, 4, server.pid)
                result.add(peer.key, "", sample)
            except (BenchError, OSError) as problem:
                result.errors.append(f"{result.name}, {peer.key}, round {number}: {problem}")
    return run


def random_io(mode: str, depth: int, jobs: int = 1) -> Callable[[Files, Settings, Result], None]:
    writable = mode == "randwrite"

    def run(files: Files, settings: Settings, result: Result) -> None:
        file = files.source() if not writable else files.disk()
        size = settings.size if not writable else files.disk_size
        for peer, number in interleaved(WRITERS if writable else READERS, settings, result):
            try:
                if writable:
                    files.disk()
                export = export_of(file, settings, writable=writable)
                arguments = fio_arguments(
                    export.uri(peer.export_name), mode, size, depth, jobs)
                with serve(peer, export) as server:
                    sample = run_fio(arguments + timed(settings.seconds), server.pid,
                                     timeout=settings.seconds + 30)
                result.add(peer.key, "", sample)
            except (BenchError, OSError) as problem:
                result.errors.append(f"{result.name}, {peer.key}, round {number}: {problem}")
    return run


def live_job(files: Files, settings: Settings, result: Result) -> None:
    for peer, number in interleaved(live.PEERS, settings, result):
        try:
            for case, sample in live.live_job(
                    peer, files, settings.directory, files.disk_size, settings.seconds):
                result.add(peer.key, case, sample)
        except (BenchError, OSError) as problem:
            result.errors.append(f"{result.name}, {peer.key}, round {number}: {problem}")


def begin(files: Files, settings: Settings, result: Result) -> None:
    for peer, number in interleaved(live.PEERS[:1], settings, result):
        try:
            for case, sample in live.begins(
                    files.disk(), settings.directory, files.disk_size):
                result.add(peer.key, case, sample)
        except (BenchError, OSError) as problem:
            result.errors.append(f"{result.name}, {peer.key}, round {number}: {problem}")
    result.notes.append("no peer is measured here")


def map_dirty(files: Files, settings: Settings, result: Result) -> None:
    sides = {NBDPULL.key: tracking.map_nbdpull, QemuNbd.key: tracking.map_qemu}
    in_turn(sides, settings, result, lambda side: side(settings.directory))


def begin_16t(files: Files, settings: Settings, result: Result) -> None:
    in_turn({NBDPULL.key: tracking.large_begins}, settings, result,
            lambda side: side(settings.directory))
    result.notes.append("no peer is measured here")


def tracking_cost(files: Files, settings: Settings, result: Result) -> None:
    sides = {tracking.TRACKED: tracking.tracked_writes,
             tracking.UNTRACKED: tracking.untracked_writes}
    in_turn(sides, settings, result,
            lambda side: [("", side(files, settings.directory, settings.seconds))])


def in_turn(
    sides: dict[str, Callable], settings: Settings, result: Result,
    samples: Callable[[Callable], Iterable[tuple[str, dict[str, float]]]]
) -> None:
    """Side after side, in turned order every second round; each gives samples by case.

    What runs second finds a disk that the first has warmed up, so the order alternates.
    """
    for number in range(1, settings.rounds + 1):
        for name, side in list(sides.items())[::1 if number % 2 else -1]:
            say(f"{result.name}: round {number} of {settings.rounds}, {name}")
            try:
                for case, sample in samples(side):
                    result.add(name, case, sample)
            except (BenchError, OSError, subprocess.SubprocessError) as problem:
                result.errors.append(f"{result.name}, {name}, round {number}: {problem}")


SCENARIOS = [
    Scenario("pull-unix-4", "Full read by nbdcopy, unix socket, 4 connections", "pull",
             ("nbdcopy",), pulling(tcp=False, connections=4)),
    Scenario("pull-unix-1", "Full read by nbdcopy, unix socket, 1 connection", "pull",
             ("nbdcopy",), pulling(tcp=False, connections=1)),
    Scenario("pull-tcp-4", "Full read by nbdcopy, TCP on loopback, 4 connections", "pull",
             ("nbdcopy",), pulling(tcp=True, connections=4)),
    Scenario("pull-tcp-1", "Full read by nbdcopy, TCP on loopback, 1 connection", "pull",
             ("nbdcopy",), pulling(tcp=True, connections=1)),
    Scenario("pull-tls-x509", "Full read by nbdcopy, TLS with certificates, TCP, 4 connections",
             "pull", ("nbdcopy",), pulling_secured(uses_key=False)),
    Scenario("pull-tls-psk", "Full read by nbdcopy, TLS with a key, TCP, 4 connections", "pull",
             ("nbdcopy",), pulling_secured(uses_key=True)),
    Scenario("randread-qd1", "4 KiB random reads, 1 in flight", "io",
             ("fio",), random_io("randread", 1)),
    Scenario("randread-qd32", "4 KiB random reads, 32 in flight", "io",
             ("fio",), random_io("randread", 32)),
    Scenario("randread-qd128", "4 KiB random reads, 128 in flight", "io",
             ("fio",), random_io("randread", 128)),
    Scenario("randread-qd32-2jobs", "4 KiB random reads, 2 connections with 32 in flight each",
             "io", ("fio",), random_io("randread", 32, jobs=2)),
    Scenario("randwrite-qd32", "4 KiB random writes, 32 in flight", "io",
             ("fio",), random_io("randwrite", 32)),
    Scenario("live-job", "4 KiB random writes, 8 in flight, to a disk that is being backed up",
             "io", ("fio", "nbdcopy"), live_job),
    Scenario("begin", "Beginning a backup job", "begin", ("fio",), begin),
    Scenario("map-dirty", "A dirty bitmap of 64 GiB, every second block of 64 KiB dirty", "map",
             ("fio", "nbdinfo", "nbdsh"), map_dirty),
    Scenario("begin-16t", "Beginning a job with a checkpoint on a disk of 16 TiB", "begin", (),
             begin_16t),
    Scenario("tracking-cost", "4 KiB random writes, 32 in flight, tracked and untracked", "io",
             ("fio",), tracking_cost),
]


def run_scenario(scenario: Scenario, files: Files, settings: Settings) -> Result:
    """Runs one scenario; what went wrong is in the result."""
    result = Result(scenario.name, scenario.title, scenario.kind)
    lacking = [reason for program in scenario.clients if (reason := missing_client(program))]
    if lacking:
        result.errors += [f"{scenario.name}: not run, {reason}" for reason in lacking]
        return result
    scenario.run(files, settings, result)
    return result


def room_needed(settings: Settings) -> int:
    """Bytes of disk space that a run may take: source, disk, and scratch of the disk's size."""
    return settings.size + 2 * min(settings.size, WRITE_LIMIT)


def room_left(directory: Path) -> int:
    return shutil.disk_usage(directory).free
