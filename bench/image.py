"""A qcow2 image through nbdpull and its adapter, beside the adapter's program alone and qemu-nbd."""

import shutil
from dataclasses import replace
from pathlib import Path

from harness import Files, Result, Settings, attempt, export_of, interleaved
from measure import BenchError, fio_arguments, pull, run_client, run_fio, serve, timed
from peers import Export, Nbdpull, QemuNbd, QemuStorageDaemon

PULL, PULL_ONE, READS, WRITES = ("pull, 4 connections", "pull, 1 connection",
                                 "4 KiB reads, 32 in flight", "4 KiB writes, 32 in flight")


class NbdpullImage(Nbdpull):
    def arguments(self, export: Export) -> list[str]:
        *first, file = super().arguments(export)
        return [*first, "--format", "qcow2", file]


class QemuNbdImage(QemuNbd):
    def arguments(self, export: Export) -> list[str]:
        plain = super().arguments(export)
        plain[plain.index("raw")] = "qcow2"
        return plain


class AdapterAlone(QemuStorageDaemon):
    """What nbdpull starts for such a disk, on its own."""

    def arguments(self, export: Export) -> list[str]:
        mode = "off" if export.writable else "on"
        return [self.path(),
                "--blockdev", f"driver=file,node-name=f0,filename={export.file},aio=io_uring,"
                              f"cache.direct=off,read-only={mode}",
                "--blockdev", f"driver=qcow2,node-name=q0,file=f0,read-only={mode}",
                "--nbd-server", self.server(export),
                "--export", "type=nbd,id=e0,node-name=q0,name=,"
                            f"writable={'on' if export.writable else 'off'}"]


SERVERS = [NbdpullImage(), AdapterAlone(), QemuNbdImage()]


def image_of(source: Path, directory: Path) -> Path:
    """The source as an image, all of it allocated."""
    program = shutil.which("qemu-img")
    if program is None:
        raise BenchError("qemu-img is not installed")
    image = directory / "image.qcow2"
    run_client([program, "convert", "-O", "qcow2", str(source), str(image)], 300)
    return image


def pulls(files: Files, settings: Settings, result: Result) -> None:
    image = image_of(files.source(), settings.directory)
    try:
        for peer, number in interleaved(SERVERS, settings, result):
            export = export_of(image, settings)
            for case, connections in [(PULL, 4), (PULL_ONE, 1)]:
                with attempt(result, f"{case}, {peer.key}, round {number}"):
                    with serve(peer, export) as server:
                        sample = pull(export.uri(peer.export_name), settings.size, connections,
                                      server.pid)
                    result.add(peer.key, case, sample)
    finally:
        image.unlink(missing_ok=True)


def random_io(files: Files, settings: Settings, result: Result) -> None:
    image = image_of(files.disk(), settings.directory)
    try:
        for peer, number in interleaved(SERVERS, settings, result):
            export = export_of(image, settings)
            for case, mode in [(READS, "randread"), (WRITES, "randwrite")]:
                with attempt(result, f"{case}, {peer.key}, round {number}"):
                    served = replace(export, writable=mode == "randwrite")
                    arguments = fio_arguments(served.uri(peer.export_name), mode,
                                              files.disk_size, depth=32)
                    with serve(peer, served) as server:
                        sample = run_fio(arguments + timed(settings.seconds), server.pid,
                                         settings.seconds + 60)
                    result.add(peer.key, case, sample)
    finally:
        image.unlink(missing_ok=True)
