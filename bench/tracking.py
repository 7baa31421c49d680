"""Checkpoints and dirty bitmaps: `map-dirty`, `begin-16t` and `tracking-cost`."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import live
from extents import map_samples
from measure import BenchError, Server, fio_arguments, run_client, run_fio, serve, timed
from peers import NBDPULL, Export, QemuNbd

BLOCK = 64 << 10
PAGE = 4 << 10
MAP_SIZE = 64 << 30
MAP_EXTENTS = MAP_SIZE // BLOCK
# The largest file of ext4 with 4 KiB blocks is one block short of 16 TiB.
LARGE_SIZE = (16 << 40) - 4096
LARGE_BEGINS = 5
DEPTH = 32

FULL = "full, with checkpoint"
INCREMENTAL = "incremental, with checkpoint"
TRACKED = "nbdpull"
UNTRACKED = "nbdpull export"


class TrackedDisk(live.LiveDisk):
    """nbdpull serving one disk, with checkpoints."""

    def create(self, checkpoint: str) -> None:
        self._control.call("POST", f"/v1/domains/{live.DOMAIN}/checkpoints",
                           {"xml": checkpoint_xml(checkpoint)})

    def begin_from(self, base: str | None, checkpoint: str | None = None) -> tuple[str, str]:
        """Begins a job; the URI of its backup export and the name of its dirty bitmap."""
        incremental = f"<incremental>{base}</incremental>" if base else ""
        body = {"backupXML": f"<domainbackup mode='pull'>{incremental}"
                             f"<server transport='unix' socket='{self.backup_socket}'/>"
                             "</domainbackup>"}
        if checkpoint:
            body["checkpointXML"] = checkpoint_xml(checkpoint)
        begun = self._control.call("POST", f"/v1/domains/{live.DOMAIN}/jobs", body)
        export = begun["exports"][0]
        return export["uri"], export.get("bitmap") or ""

    @property
    def backup_socket(self) -> Path:
        return self._control_path.parent / "backup.sock"


def checkpoint_xml(name: str) -> str:
    return f"<domaincheckpoint><name>{name}</name></domaincheckpoint>"


def sparse(path: Path, size: int) -> Path:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


# Every second block of 64 KiB is changed. qemu counts a discard of what was never written, which
# takes no room; nbdpull does not, so a page is written there.

def write_every_second_block(uri: str) -> None:
    run_client([shutil.which("fio"), "--name=bench", "--ioengine=nbd", f"--uri={uri}",
                f"--rw=write:{2 * BLOCK - PAGE}", f"--bs={PAGE}", f"--iodepth={DEPTH}",
                f"--size={MAP_SIZE}", f"--io_size={MAP_SIZE // (2 * BLOCK) * PAGE}"], timeout=300)


def discard_every_second_block(uri: str) -> None:
    run_client([shutil.which("fio"), "--name=bench", "--ioengine=nbd", f"--uri={uri}",
                f"--rw=trim:{BLOCK}", f"--bs={BLOCK}", f"--iodepth={DEPTH}", f"--size={MAP_SIZE}",
                f"--io_size={MAP_SIZE // 2}"], timeout=300)


def map_nbdpull(directory: Path) -> Iterator[tuple[str, dict[str, float]]]:
    disk = sparse(directory / "map.img", MAP_SIZE)
    try:
        with TrackedDisk(disk, directory) as served:
            served.create("base")
            write_every_second_block(served.uri)
            uri, bitmap = served.begin_from("base")
            yield from map_samples(uri, f"qemu:dirty-bitmap:{bitmap}", MAP_SIZE, MAP_EXTENTS,
                                   served.pid)
            served.end()
    finally:
        disk.unlink(missing_ok=True)


def map_qemu(directory: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """The bitmap of a qcow2 image, set by the same discards."""
    disk, place = directory / "map.qcow2", directory / "nbd.sock"
    peer, uri = QemuNbd(), Export(disk, directory, socket=directory / "nbd.sock").uri()
    disk.unlink(missing_ok=True)
    try:
        for arguments in (["create", "-q", "-f", "qcow2", str(disk), str(MAP_SIZE)],
                          ["bitmap", "--add", "-g", str(BLOCK), str(disk), "base"]):
            subprocess.run(["qemu-img", *arguments], check=True, timeout=60)
        options = ["-f", "qcow2", "-t", "-e", "8", "-k", str(place), str(disk)]
        with Server(peer.key, [peer.path(), "--discard=unmap", *options], directory, place):
            discard_every_second_block(uri)
        with Server(peer.key, [peer.path(), "-r", "-B", "base", *options], directory, place) \
                as server:
            yield from map_samples(uri, "qemu:dirty-bitmap:base", MAP_SIZE, MAP_EXTENTS,
                                   server.pid)
    finally:
        disk.unlink(missing_ok=True)


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise BenchError(f"process {pid} shows no VmRSS")


def large_begins(directory: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Jobs with checkpoints on an idle disk of 16 TiB, one after the other."""
    disk = sparse(directory / "large.img", LARGE_SIZE)
    try:
        with TrackedDisk(disk, directory) as served:
            for number in range(LARGE_BEGINS):
                yield FULL, large_begin(served, None, f"full-{number}")
            for number in range(LARGE_BEGINS):
                yield INCREMENTAL, large_begin(served, "full-0", f"more-{number}")
    finally:
        disk.unlink(missing_ok=True)


def large_begin(served: TrackedDisk, base: str | None, name: str) -> dict[str, float]:
    before = resident_mib(served.pid)
    started = time.monotonic()
    served.begin_from(base, name)
    latency = (time.monotonic() - started) * 1e3
    sample = {"value": latency, "hold": served.information()["holdNanoseconds"] / 1e3,
              "rss_before": before, "rss_during": resident_mib(served.pid)}
    served.end()
    # What was sealed is compressed in the background: not the next begin's business.
    time.sleep(1)
    return sample


def tracked_writes(files, directory: Path, seconds: float) -> dict[str, float]:
    size = files.disk_size
    with TrackedDisk(files.disk(), directory) as served:
        served.create("base")
        arguments = fio_arguments(served.uri, "randwrite", size, DEPTH) + timed(seconds)
        return run_fio(arguments, served.pid, timeout=seconds + 30)


def untracked_writes(files, directory: Path, seconds: float) -> dict[str, float]:
    size = files.disk_size
    export = Export(files.disk(), directory, socket=directory / "nbd.sock", writable=True)
    arguments = fio_arguments(export.uri(), "randwrite", size, DEPTH) + timed(seconds)
    with serve(NBDPULL, export) as server:
        return run_fio(arguments, server.pid, timeout=seconds + 30)
