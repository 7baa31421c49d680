"""Block status: how fast a server tells the extents of an export, and a fragmented file."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness import Files, Settings, export_of, say
from measure import BenchError, run_client, serve, tree_cpu
from peers import Peer

FILE_SIZE = 64 << 30
PERIOD, DATA = 128 << 10, 4 << 10
# Half of them data, half of them holes.
FILE_EXTENTS = 2 * (FILE_SIZE // PERIOD)

BY_LIBNBD = "libnbd, 1 GiB a request"
BY_NBDINFO = "nbdinfo --map"

Samples = Iterator[tuple[str, dict[str, float]]]

# Runs in nbdsh: the extents of the whole export in steps of 1 GiB, counted, and how long it took.
# A step's answer may end early; the next request begins where it ended.
COUNT_EXTENTS = """
import os, time
context, size, step = os.environ["CONTEXT"], int(os.environ["SIZE"]), 1 << 30
h.add_meta_context(context)
h.connect_uri(os.environ["URI"])
count = place = 0
def note(name, offset, entries, error):
    global count, place
    if name == context:
        count += len(entries) // 2
        place = offset + sum(entries[::2])
    return 0
started = time.monotonic()
while place < size:
    h.block_status(min(step, size - place), place, note)
print(count, time.monotonic() - started)
"""


def map_samples(uri: str, context: str, size: int, expected: int, pid: int) -> Samples:
    """Both ways to ask for all extents; BenchError when there are more or fewer than expected,
    since the servers would not be doing the same then."""
    before = tree_cpu(pid)
    output, _, _ = run_client(
        ["env", f"URI={uri}", f"CONTEXT={context}", f"SIZE={size}", shutil.which("nbdsh"),
         "-c", COUNT_EXTENTS], timeout=300)
    count, wall = int(output.split()[0]), float(output.split()[1])
    check(count, expected, "libnbd")
    yield BY_LIBNBD, {"value": count / wall, "seconds": wall,
                      "server_cpu": tree_cpu(pid) - before}
    before = tree_cpu(pid)
    output, wall, _ = run_client(
        [shutil.which("nbdinfo"), f"--map={context}", uri], timeout=300)
    count = output.count("\n")
    check(count, expected, "nbdinfo")
    yield BY_NBDINFO, {"value": count / wall, "seconds": wall,
                       "server_cpu": tree_cpu(pid) - before}


def check(count: int, expected: int, client: str) -> None:
    if count != expected:
        raise BenchError(f"{client} was told {count} extents instead of {expected}")


def fragmented(path: Path) -> Path:
    """A sparse file with a piece of data in every period, made when it is not there yet."""
    if path.exists():
        return path
    say(f"writing a sparse file of {FILE_EXTENTS} extents")
    block = os.urandom(DATA)
    with path.open("wb", buffering=0) as file:
        descriptor = file.fileno()
        os.truncate(descriptor, FILE_SIZE)
        for place in range(0, FILE_SIZE, PERIOD):
            os.pwrite(descriptor, block, place)
        os.fsync(descriptor)
    return path


def file_room() -> int:
    """Bytes of disk space that the fragmented file takes, with what the file system needs."""
    return FILE_SIZE // PERIOD * DATA * 5 // 4


def of_file(peer: Peer, files: Files, settings: Settings) -> Samples:
    export = export_of(fragmented(settings.directory / "fragmented.img"), settings)
    with serve(peer, export) as server:
        yield from map_samples(
            export.uri(peer.export_name), "base:allocation", FILE_SIZE, FILE_EXTENTS, server.pid)
