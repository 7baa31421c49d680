"""What a backup costs the machine that writes meanwhile: `live-job` and `live-fsync`."""

import random
from collections.abc import Iterator
from pathlib import Path

from harness import Files, Settings
from live import DEPTH, Puller, Target, begun, idle
from measure import fio_arguments, run_fio, run_fio_syncs, timed
from peers import Peer

# Of qemu; nbdpull's are smaller.
CLUSTER = 64 << 10
WRITES_PER_SYNC = 8

IDLE = "no job"
BEGUN = "job begun, never pulled"
FIRST_TOUCH = "first touch"
PULLED = "while pulled"

Sample = dict[str, float]


def live_job(
    peer: Peer, files: Files, settings: Settings, piece: int
) -> Iterator[tuple[str, Sample]]:
    """Random writes in four cases; each begins with the disk's file written back, in the page cache
    as if it had been written in pieces of that size."""
    directory, size = settings.directory, files.disk_size

    def writes(target: Target) -> Sample:
        arguments = fio_arguments(target.live, "randwrite", size, DEPTH)
        return run_fio(arguments + timed(settings.seconds), target.pid, settings.seconds + 60)

    def touches(target: Target) -> Sample:
        log = first_touch_log(directory, size)
        arguments = fio_arguments(target.live, "randwrite", size, DEPTH)
        return run_fio(arguments + [f"--read_iolog={log}"], target.pid, timeout=120)

    with idle(peer, files.disk(piece), directory) as target:
        yield IDLE, writes(target)
    with begun(peer, files.disk(piece), directory) as target:
        yield BEGUN, writes(target)
    with begun(peer, files.disk(piece), directory) as target:
        yield FIRST_TOUCH, touches(target)
    with begun(peer, files.disk(piece), directory) as target:
        with Puller(target.backup, size) as puller:
            sample = writes(target)
        # The server's and the client's work for the pull would be counted as the writes'.
        del sample["server_cpu"], sample["client_cpu"]
        yield PULLED, {**sample, "pull": puller.gigabytes_per_second()}


def live_fsync(peer: Peer, files: Files, settings: Settings) -> Iterator[tuple[str, Sample]]:
    """Random writes, one at a time, with an fsync after every few of them, in three cases."""
    directory, size = settings.directory, files.disk_size

    def syncs(target: Target) -> Sample:
        # With more in flight fio sends several fsyncs where one is due.
        arguments = fio_arguments(target.live, "randwrite", size, 1)
        arguments += [f"--fsync={WRITES_PER_SYNC}", *timed(settings.seconds)]
        return run_fio_syncs(arguments, settings.seconds + 60)

    with idle(peer, files.disk(), directory) as target:
        yield IDLE, syncs(target)
    with begun(peer, files.disk(), directory) as target:
        yield BEGUN, syncs(target)
    with begun(peer, files.disk(), directory) as target:
        with Puller(target.backup, size) as puller:
            sample = syncs(target)
        yield PULLED, {**sample, "pull": puller.gigabytes_per_second()}


def first_touch_log(directory: Path, size: int) -> Path:
    """A fio log with one 4 KiB write to every 64 KiB, in random order."""
    path = directory / "first-touch.fio"
    clusters = list(range(size // CLUSTER))
    random.shuffle(clusters)
    places = (cluster * CLUSTER + 4096 * random.randrange(CLUSTER // 4096) for cluster in clusters)
    path.write_text("fio version 2 iolog\nnbd add\nnbd open\n"
                    + "".join(f"nbd write {place} 4096\n" for place in places) + "nbd close\n",
                    encoding="ascii")
    return path
