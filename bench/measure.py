"""Starting servers and clients with a time limit, and reading what they cost."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from peers import Export, Peer

GIB = 1 << 30
START_TIMEOUT = 10.0
STOP_TIMEOUT = 10.0
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A run that gave no figure: what failed, and the end of what it said."""


def free_port() -> int:
    """A TCP port that is free on the loopback address right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from `state` on, or None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2:].split()


def is_running(pid: int) -> bool:
    """Whether the process exists and has not ended; a zombie has."""
    fields = stat_fields(pid)
    return fields is not None and fields[0] not in "ZX"


def process_tree(root: int) -> dict[int, list[str]]:
    """The stat fields of a process and of its descendants, by process id."""
    children: dict[int, list[int]] = {}
    fields: dict[int, list[str]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        found = stat_fields(int(entry))
        if found is None:
            continue
        children.setdefault(int(found[1]), []).append(int(entry))
        fields[int(entry)] = found
    tree, queue = {}, [root]
    while queue:
        pid = queue.pop()
        if pid in fields:
            tree[pid] = fields[pid]
        queue += children.get(pid, [])
    return tree


def tree_cpu(root: int) -> float:
    """User and system seconds of a process and its descendants: all threads, the kernel's
    io_uring workers included, and children that have ended. Resolution is a clock tick."""
    # utime, stime, cutime, cstime
    ticks = sum(int(field) for fields in process_tree(root).values() for field in fields[11:15])
    return ticks / TICKS_PER_SECOND


def tail(text: str, lines: int = 5) -> str:
    return " | ".join(text.strip().splitlines()[-lines:]) or "it printed nothing"


class Server:
    """A running server, used as a context: stopped on leaving, whatever happened."""

    def __init__(self, name: str, arguments: list[str], directory: Path,
                 socket_path: Path | None = None, port: int | None = None,
                 pid_file: str | None = None):
        self.name = name
        self.log = directory / "server.log"
        self._arguments, self._socket, self._port = arguments, socket_path, port
        self._pid_file = directory / pid_file if pid_file else None
        self._process: subprocess.Popen | None = None
        self.pid = 0

    def __enter__(self) -> "Server":
        for stale in (self._socket, self._pid_file):
            if stale is not None:
                stale.unlink(missing_ok=True)
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                self._arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True)
        self.pid = self._process.pid
        try:
            self._await_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind, error, trace) -> None:
        crashed = None
        if not self._alive():
            crashed = f"{self.name} died during the run{self._status()}: {self._said()}"
        status = self._end()
        if crashed is None and status not in (0, -signal.SIGTERM, None):
            crashed = f"{self.name} did not stop cleanly (status {status}): {self._said()}"
        if crashed is not None:
            client = f"{error}; " if isinstance(error, BenchError) else ""
            raise BenchError(client + crashed) from error

    def _said(self) -> str:
        return tail(self.log.read_text(errors="replace"))

    def _status(self) -> str:
        code = None if self._pid_file else self._process.poll()
        return "" if code is None else f" (status {code})"

    def _alive(self) -> bool:
        return is_running(self.pid) if self._pid_file else self._process.poll() is None

    def _reachable(self) -> bool:
        family = socket.AF_UNIX if self._socket else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self._socket) if self._socket else ("127.0.0.1", self._port))
            except OSError:
                return False
        return True

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            status = self._process.poll()
            if status is not None and (status != 0 or self._pid_file is None):
                raise BenchError(f"{self.name} ended at its start (status {status}): "
                                 f"{self._said()}")
            if self._reachable():
                if self._pid_file is None:
                    return
                text = self._pid_file.read_text() if self._pid_file.exists() else ""
                if text.strip().isdigit():
                    self.pid = int(text)
                    return
            time.sleep(0.02)
        raise BenchError(f"{self.name} was not reachable after {START_TIMEOUT:.0f} s: "
                         f"{self._said()}")

    def _end(self) -> int | None:
        """Stops the server; its exit status, or None for one in the background."""
        if self._alive():
            try:
                os.kill(self.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
        deadline = time.monotonic() + STOP_TIMEOUT
        while self._alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._alive():
            os.kill(self.pid, signal.SIGKILL)
        if self._pid_file is None:
            return self._process.wait(STOP_TIMEOUT)
        self._process.poll()
        return None


def serve(peer: Peer, export: Export) -> Server:
    """The server of this peer on this export, to be entered."""
    return Server(peer.key, peer.arguments(export), export.directory, export.socket, export.port,
                  peer.pid_file)


def run_client(arguments: list[str], timeout: float) -> tuple[str, float, float]:
    """Runs a client to its end: its output, seconds by the wall clock, CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    process = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True)
    try:
        output, errors = process.communicate(timeout=timeout)
    except BaseException as problem:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(problem, subprocess.TimeoutExpired):
            raise BenchError(f"{arguments[0]} was not done after {timeout:.0f} s") from problem
        raise
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode != 0:
        raise BenchError(f"{arguments[0]} failed (status {process.returncode}): "
                         f"{tail(errors or output)}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return output, wall, cpu


def pull(uri: str, size: int, connections: int, pid: int, passes: int = 1) -> dict[str, float]:
    """Reads the whole export with nbdcopy, once or several times, one after the other."""
    arguments = [shutil.which("nbdcopy"), f"--connections={connections}", uri, "null:"]
    before = tree_cpu(pid)
    runs = [run_client(arguments, timeout=30 + size / (50 << 20)) for _ in range(passes)]
    # A server that forks per connection reaps its children a moment after the client's end.
    time.sleep(0.05)
    server = tree_cpu(pid) - before
    wall, client = sum(run[1] for run in runs), sum(run[2] for run in runs)
    total = size * passes
    return {"value": total / wall / 1e9, "server_cpu": server / (total / GIB),
            "client_cpu": client / (total / GIB)}


def fio_arguments(
    uri: str, mode: str, size: int, depth: int, jobs: int = 1, block: int = 4 << 10
) -> list[str]:
    return [shutil.which("fio"), "--name=bench", "--ioengine=nbd", f"--uri={uri}", f"--rw={mode}",
            f"--bs={block}", f"--iodepth={depth}", f"--numjobs={jobs}", f"--size={size}",
            "--group_reporting", "--output-format=json"]


def timed(seconds: float) -> list[str]:
    """fio's options for random places during a fixed time."""
    return ["--time_based", f"--runtime={seconds:g}", "--norandommap", "--randrepeat=0"]


def latencies(percentile: dict[str, float], prefix: str = "") -> dict[str, float]:
    """Microseconds from fio's table of percentiles in nanoseconds."""
    return {f"{prefix}p50": percentile["50.000000"] / 1e3,
            f"{prefix}p99": percentile["99.000000"] / 1e3,
            f"{prefix}p99.9": percentile["99.900000"] / 1e3}


def fio_job(arguments: list[str], timeout: float) -> tuple[dict, float]:
    """Runs fio: its account of the job, and its CPU seconds."""
    output, _, client = run_client(arguments, timeout)
    try:
        # fio may say something before its JSON document.
        job = json.loads(output[output.index("\n{") if output[:1] != "{" else 0:])["jobs"][0]
    except (ValueError, KeyError, IndexError) as problem:
        raise BenchError(f"fio printed no result: {tail(output)}") from problem
    if job["error"]:
        raise BenchError(f"fio reports error {job['error']}")
    if job["read"]["total_ios"] + job["write"]["total_ios"] == 0:
        raise BenchError("fio completed no request")
    return job, client


def run_fio(arguments: list[str], pid: int, timeout: float) -> dict[str, float]:
    """Runs fio: requests per second, latency in microseconds, CPU microseconds per request."""
    before = tree_cpu(pid)
    job, client = fio_job(arguments, timeout)
    time.sleep(0.05)
    server = tree_cpu(pid) - before
    side = job[max(("read", "write"), key=lambda name: job[name]["total_ios"])]
    return {"value": side["iops"], **latencies(side["clat_ns"]["percentile"]),
            "server_cpu": server * 1e6 / side["total_ios"],
            "client_cpu": client * 1e6 / side["total_ios"]}


def run_fio_syncs(arguments: list[str], timeout: float) -> dict[str, float]:
    """Runs fio with writes and fsync: the latency of fsync in microseconds, and how many."""
    job, _ = fio_job(arguments, timeout)
    sync = job["sync"]
    if sync["total_ios"] == 0:
        raise BenchError("fio completed no fsync")
    found = latencies(sync["lat_ns"]["percentile"], "sync_")
    seconds = job["job_runtime"] / 1e3
    return {"value": found.pop("sync_p99"), **found, "syncs": sync["total_ios"] / seconds,
            "iops": job["write"]["iops"]}
