"""The memory of a server with many connections: `memory`."""

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from harness import Files, Settings
from measure import BenchError, process_tree, serve, tail
from peers import Export, Peer

COUNTS = [1, 16, 100]
TIMEOUT = 60.0

# Runs in nbdsh: opens connections, reads over all of them at once, and keeps them open until its
# standard input ends.
OPEN_AND_READ = """
import os, sys, nbd
uri, count, size = os.environ["URI"], int(os.environ["COUNT"]), int(os.environ["SIZE"])
block, in_flight, rounds = 256 << 10, 4, 16
handles = [nbd.NBD() for _ in range(count)]
failed = 0
def done(error):
    global failed
    failed += error.value != 0
    return 1
for handle in handles:
    handle.connect_uri(uri)
place = 0
for _ in range(rounds):
    for handle in handles:
        for _ in range(in_flight):
            handle.aio_pread(nbd.Buffer(block), place, completion=done)
            place = (place + block) % (size - block)
    for handle in handles:
        while handle.aio_in_flight():
            handle.poll(-1)
print("failed" if failed else "open", flush=True)
sys.stdin.read()
"""


def memory(peer: Peer, files: Files, settings: Settings) -> Iterator[tuple[str, dict[str, float]]]:
    """A server anew for each number of connections, so that no case has what an earlier left."""
    file = files.source()
    for count in COUNTS:
        export = Export(file, settings.directory, socket=settings.directory / "nbd.sock",
                        connections=128)
        with serve(peer, export) as server:
            sample = with_connections(
                export.uri(peer.export_name), count, settings.size, server.pid)
        yield f"{count} connection{'s' if count > 1 else ''}", sample


def with_connections(uri: str, count: int, size: int, pid: int) -> dict[str, float]:
    client = subprocess.Popen(
        [shutil.which("nbdsh"), "-c", OPEN_AND_READ],
        env={**os.environ, "URI": uri, "COUNT": str(count), "SIZE": str(size)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True)
    # A server that never answers is not waited for.
    signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
    try:
        anonymous = 0.0
        while not select.select([client.stdout], [], [], 0.005)[0]:
            anonymous = max(anonymous, anonymous_mib(pid))
        answer = client.stdout.readline().strip()
        if answer != "open":
            said = "reads failed" if answer else tail(client.stderr.read())
            raise BenchError(f"nbdsh with {count} connections: {said}")
        return {**of_tree(pid), "anonymous": max(anonymous, anonymous_mib(pid))}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.killpg(client.pid, signal.SIGKILL)
        client.communicate()


def too_late(*_) -> None:
    raise BenchError(f"nbdsh was not done after {TIMEOUT:.0f} s")


def of_tree(root: int) -> dict[str, float]:
    """MiB of a process and its descendants: what is shared is counted once in PSS, in each of
    them in RSS. The sum of the peaks is an upper bound."""
    found = {"value": 0.0, "rss": 0.0, "peak": 0.0, "processes": 0.0}
    for pid in process_tree(root):
        rollup = kib_fields(pid, "smaps_rollup")
        found["value"] += rollup["Pss"] / 1024
        found["rss"] += rollup["Rss"] / 1024
        found["peak"] += kib_fields(pid, "status")["VmHWM"] / 1024
        found["processes"] += 1
    return found


def anonymous_mib(root: int) -> float:
    """MiB that no file backs, of a process and its descendants, right now."""
    found = 0.0
    for pid in process_tree(root):
        try:
            found += kib_fields(pid, "status").get("RssAnon", 0) / 1024
        except OSError:
            continue
    return found


def kib_fields(pid: int, name: str) -> dict[str, int]:
    """The lines `Name: 123 kB` of a file of /proc/PID."""
    text = Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")
    pairs = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {parts[0].rstrip(":"): int(parts[1]) for parts in pairs}
