"""What the figures were measured on: machine, system, versions, commit."""

import os
import platform
import subprocess
import time
from pathlib import Path

from peers import CLIENTS, NBDPULL, READERS, REPOSITORY, client_version


def file_system(directory: Path) -> str:
    """The type of the file system that holds the directory, from the mount table."""
    best, kind = "", "unknown"
    where = str(directory.resolve())
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        point, name = line.split()[1:3]
        point = point.replace("\\040", " ")
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, name
    return kind


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1)


def commit() -> str:
    """The commit of this tree, marked when files differ from it."""
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True,
                              text=True, timeout=10, check=True)
        return done.stdout.strip()
    try:
        changed = "-changed" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def binary_time() -> str:
    """When nbdpull's executable was built: it need not be this commit's."""
    path = NBDPULL.path()
    if path is None:
        return "missing"
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(os.stat(path).st_mtime))


def describe(directory: Path) -> dict:
    """Everything a reader needs to judge the figures."""
    versions = {}
    for peer in READERS:
        versions.setdefault(peer.program, peer.version())
    for program in CLIENTS:
        versions[program] = client_version(program)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit(),
        "binaryBuilt": binary_time(),
        "kernel": platform.release(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memoryGiB": memory_gib(),
        "fileSystem": file_system(directory),
        "loadAtStart": round(os.getloadavg()[0], 2),
        "versions": versions,
    }
