"""What all scenarios are made of: settings, results, the files served, the order of runs."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from measure import BenchError, free_port
from pagecache import LARGE_PIECE, copy_in_pieces, evict, read_through
from peers import Export, Peer

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
    """What a scenario gave. `kind` names the columns of its samples in report.py."""

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
        self._piece = 0

    def source(self) -> Path:
        """The read-only file: incompressible, and read once so that it is in the page cache."""
        if not self._source.exists():
            say(f"writing {self._settings.size >> 20} MiB of random data")
            with self._source.open("wb") as file:
                for offset in range(0, self._settings.size, LARGE_PIECE):
                    file.write(os.urandom(min(LARGE_PIECE, self._settings.size - offset)))
                file.flush()
                os.fsync(file.fileno())
        read_through(self._source)
        return self._source

    @property
    def disk_size(self) -> int:
        return min(self._settings.size, WRITE_LIMIT)

    def disk(self, piece: int = LARGE_PIECE, is_for_reads: bool = False) -> Path:
        """The file that is written to: fully allocated, in the page cache, nothing left to
        write back. How it was written, in large or small pieces, is what a write costs.

        Large pieces are written anew for each run with writes: nbdpull has the kernel split large
        folios, and whoever comes after it would find small ones."""
        if self._piece != piece or (piece == LARGE_PIECE and not is_for_reads):
            if self._disk.exists():
                evict(self._disk)
            self._disk.touch()
            copy_in_pieces(self.source(), self._disk, self.disk_size, piece)
            self._piece = piece
        with self._disk.open("rb+", buffering=0) as disk:
            os.fsync(disk.fileno())
        read_through(self._disk)
        return self._disk

    def disk_went_direct(self) -> None:
        """To be told when the disk was written past the page cache, which has holes then: the
        next one who wants the disk has it filled anew."""
        self._piece = 0


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


@contextmanager
def attempt(result: Result, what: str) -> Iterator[None]:
    """A run that may fail: the failure is noted, and the next run follows."""
    try:
        yield
    except (BenchError, OSError, subprocess.SubprocessError) as problem:
        result.errors.append(f"{result.name}, {what}: {problem}")


def export_of(
    file: Path, settings: Settings, tcp: bool = False, **more: bool | int | None
) -> Export:
    """An export at a place of its own; `more` are fields of Export."""
    if tcp:
        return Export(file, settings.directory, port=free_port(), **more)
    return Export(file, settings.directory, socket=settings.directory / "nbd.sock", **more)


def for_each_peer(
    peers: list[Peer], settings: Settings, result: Result,
    samples: Callable[[Peer], Iterable[tuple[str, dict[str, float]]]]
) -> None:
    """Peer after peer, round after round; each run gives samples by case."""
    for peer, number in interleaved(peers, settings, result):
        with attempt(result, f"{peer.key}, round {number}"):
            for case, sample in samples(peer):
                result.add(peer.key, case, sample)


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
            with attempt(result, f"{name}, round {number}"):
                for case, sample in samples(side):
                    result.add(name, case, sample)
