"""The scenarios: what is run against which servers, and in what order."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import extents
import guest
import image
import live
import memory
import pulljob
import push
import resume
import restart
import tracking
import vhost
import watched
from credentials import make_credentials, missing_maker
from harness import (WRITE_LIMIT, Files, Result, Scenario, Settings, attempt, export_of,
                     for_each_peer, in_turn, interleaved, say)
from measure import fio_arguments, free_port, pull, run_fio, serve, timed
from pagecache import LARGE_FOLIOS, LARGE_PIECE, SMALL_PAGES, SMALL_PIECE, cached_mib, evict
from peers import (NBDPULL, QEMU_STORAGE_DAEMON, READERS, TLS_READERS, WRITERS, Export, Nbdkit,
                   Peer, QemuNbd, missing_client)
from report import compared

Run = Callable[[Files, Settings, Result], None]

ONE_RING, TWO_RINGS = "1 ring", "2 rings"


def pulling(tcp: bool, connections: int) -> Run:
    def run(files: Files, settings: Settings, result: Result) -> None:
        file = files.source()
        for peer, number in interleaved(READERS, settings, result):
            with attempt(result, f"{peer.key}, round {number}"):
                export = export_of(file, settings, tcp)
                with serve(peer, export) as server:
                    sample = pull(
                        export.uri(peer.export_name), settings.size, connections, server.pid)
                result.add(peer.key, "", sample)
    return run


def pulling_cold(files: Files, settings: Settings, result: Result) -> None:
    file = files.source()
    for peer, number in interleaved(READERS, settings, result):
        with attempt(result, f"{peer.key}, round {number}"):
            evict(file)
            export = export_of(file, settings)
            with serve(peer, export) as server:
                sample = pull(export.uri(peer.export_name), settings.size, 4, server.pid)
            result.add(peer.key, "", {**sample, "cached": cached_mib(file)})


def pulling_secured(uses_key: bool) -> Run:
    def run(files: Files, settings: Settings, result: Result) -> None:
        if not uses_key and (reason := missing_maker()):
            result.errors.append(f"{result.name}: not run, {reason}")
            return
        file = files.source()
        tls = make_credentials(settings.directory / "tls", uses_key)
        for peer, number in interleaved(TLS_READERS, settings, result):
            with attempt(result, f"{peer.key}, round {number}"):
                export = Export(file, settings.directory, port=free_port(), tls=tls)
                with serve(peer, export) as server:
                    sample = pull(export.uri(peer.export_name), settings.size, 4, server.pid)
                result.add(peer.key, "", sample)
    return run


def random_io(
    peer: Peer, export: Export, mode: str, size: int, settings: Settings, depth: int,
    jobs: int = 1, block: int = 4 << 10
) -> dict[str, float]:
    arguments = fio_arguments(export.uri(peer.export_name), mode, size, depth, jobs, block)
    with serve(peer, export) as server:
        return run_fio(arguments + timed(settings.seconds), server.pid, settings.seconds + 30)


def random_reads(depth: int, jobs: int = 1) -> Run:
    def run(files: Files, settings: Settings, result: Result) -> None:
        file = files.source()
        for_each_peer(READERS, settings, result, lambda peer: [
            ("", random_io(peer, export_of(file, settings), "randread", settings.size, settings,
                           depth, jobs))])
    return run


def random_writes(depth: int, block: int, pieces: dict[str, int]) -> Run:
    """One case after the other, each on the disk written in pieces of its size."""
    def run(files: Files, settings: Settings, result: Result) -> None:
        def written(peer: Peer, piece: int) -> dict[str, float]:
            export = export_of(files.disk(piece), settings, writable=True)
            return random_io(peer, export, "randwrite", files.disk_size, settings, depth,
                             block=block)

        for case, piece in pieces.items():
            for_each_peer(WRITERS, settings, result,
                          lambda peer: [(case, written(peer, piece))])
        result.notes = list(dict.fromkeys(result.notes))
    return run


def over_rings(sample: Callable[[Export, Settings], dict[str, float]]) -> Run:
    def run(files: Files, settings: Settings, result: Result) -> None:
        export = export_of(files.source(), settings)
        cases = {ONE_RING: replace(export, rings=1), TWO_RINGS: replace(export, rings=2)}
        for number in range(1, settings.rounds + 1):
            for case, served in cases.items():
                say(f"{result.name}: round {number} of {settings.rounds}, {case}")
                with attempt(result, f"{case}, round {number}"):
                    result.add(NBDPULL.key, case, sample(served, settings))
        result.notes += [*compared(result.rows, TWO_RINGS, ONE_RING), "no peer is measured here"]
    return run


def pull_over_rings(export: Export, settings: Settings) -> dict[str, float]:
    with serve(NBDPULL, export) as server:
        return pull(export.uri(), settings.size, 4, server.pid)


def reads_over_rings(export: Export, settings: Settings) -> dict[str, float]:
    return random_io(NBDPULL, export, "randread", settings.size, settings, 32, jobs=2)


def live_job(piece: int) -> Run:
    def run(files: Files, settings: Settings, result: Result) -> None:
        for_each_peer(live.PEERS, settings, result,
                      lambda peer: guest.live_job(peer, files, settings, piece))
    return run


def live_fsync(files: Files, settings: Settings, result: Result) -> None:
    for_each_peer(live.PEERS, settings, result,
                  lambda peer: guest.live_fsync(peer, files, settings))


def begin(files: Files, settings: Settings, result: Result) -> None:
    for_each_peer([NBDPULL], settings, result, lambda _: live.begins(
        files.disk(), settings.directory, files.disk_size))
    result.notes.append("no peer is measured here")


def restarts(files: Files, settings: Settings, result: Result) -> None:
    for_each_peer([NBDPULL], settings, result, lambda _: restart.pauses(
        files.disk(), settings.directory, files.disk_size))
    result.notes.append("no peer is measured here: with them a restart ends the backup")


def memory_of_servers(files: Files, settings: Settings, result: Result) -> None:
    for_each_peer(WRITERS, settings, result,
                  lambda peer: memory.memory(peer, files, settings))


def extents_of_file(files: Files, settings: Settings, result: Result) -> None:
    peers = [NBDPULL, Nbdkit(), QemuNbd(), QEMU_STORAGE_DAEMON]
    for_each_peer(peers, settings, result, lambda peer: extents.of_file(peer, files, settings))
    result.notes.append("left out: nbd-server: it has no structured replies, so no block status")


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


def watched_writes(files: Files, settings: Settings, result: Result) -> None:
    in_turn({NBDPULL.key: lambda: watched.writes(files, settings)}, settings, result,
            lambda side: side())
    result.notes += [*compared(result.rows, watched.FOUR, watched.NOBODY),
                     "no peer is measured here"]


def resume_jobs(files: Files, settings: Settings, result: Result) -> None:
    in_turn({NBDPULL.key: resume.resumes}, settings, result,
            lambda side: side(settings.directory))
    result.notes.append("no peer's jobs outlive it")


def start(files: Files, settings: Settings, result: Result) -> None:
    in_turn({NBDPULL.key: resume.starts}, settings, result,
            lambda side: side(settings.directory))
    result.notes.append("no peer's jobs outlive it")


SCENARIOS = [
    Scenario("pull-unix-4", "Full read by nbdcopy, unix socket, 4 connections", "pull",
             ("nbdcopy",), pulling(tcp=False, connections=4)),
    Scenario("pull-unix-1", "Full read by nbdcopy, unix socket, 1 connection", "pull",
             ("nbdcopy",), pulling(tcp=False, connections=1)),
    Scenario("pull-tcp-4", "Full read by nbdcopy, TCP on loopback, 4 connections", "pull",
             ("nbdcopy",), pulling(tcp=True, connections=4)),
    Scenario("pull-tcp-1", "Full read by nbdcopy, TCP on loopback, 1 connection", "pull",
             ("nbdcopy",), pulling(tcp=True, connections=1)),
    Scenario("pull-cold", "Full read by nbdcopy, unix socket, 4 connections, file not in memory",
             "pull", ("nbdcopy",), pulling_cold),
    Scenario("pull-tls-x509", "Full read by nbdcopy, TLS with certificates, TCP, 4 connections",
             "pull", ("nbdcopy",), pulling_secured(uses_key=False)),
    Scenario("pull-tls-psk", "Full read by nbdcopy, TLS with a key, TCP, 4 connections", "pull",
             ("nbdcopy",), pulling_secured(uses_key=True)),
    Scenario("pull-job-4", "Full backup by nbdcopy, unix socket, 4 connections", "pull",
             ("nbdcopy", "fio"), pulljob.pull_job),
    Scenario("push", "Full backup that the server writes to a file", "push", ("qemu-img",),
             push.push),
    Scenario("qcow2-pull", "Full read of a qcow2 image by nbdcopy, unix socket", "pull",
             ("nbdcopy", "qemu-img"), image.pulls),
    Scenario("qcow2-io", "4 KiB at random places of a qcow2 image, 32 in flight", "io",
             ("fio", "qemu-img"), image.random_io),
    Scenario("rings-pull", "Full read by nbdcopy, unix socket, 4 connections, by rings", "pull",
             ("nbdcopy",), over_rings(pull_over_rings)),
    Scenario("randread-qd1", "4 KiB random reads, 1 in flight", "io",
             ("fio",), random_reads(1)),
    Scenario("randread-qd32", "4 KiB random reads, 32 in flight", "io",
             ("fio",), random_reads(32)),
    Scenario("randread-qd128", "4 KiB random reads, 128 in flight", "io",
             ("fio",), random_reads(128)),
    Scenario("randread-qd32-2jobs", "4 KiB random reads, 2 connections with 32 in flight each",
             "io", ("fio",), random_reads(32, jobs=2)),
    Scenario("rings-randread", "4 KiB random reads, 2 connections with 32 in flight each, by rings",
             "io", ("fio",), over_rings(reads_over_rings)),
    Scenario("randwrite-qd32", "4 KiB random writes, 32 in flight", "io", ("fio",),
             random_writes(32, 4 << 10, {LARGE_FOLIOS: LARGE_PIECE, SMALL_PAGES: SMALL_PIECE})),
    Scenario("randwrite-64k", "64 KiB random writes, 16 in flight", "io", ("fio",),
             random_writes(16, 64 << 10, {"": LARGE_PIECE})),
    Scenario("live-job", "4 KiB random writes, 8 in flight, to a disk that is being backed up",
             "io", ("fio", "nbdcopy"), live_job(LARGE_PIECE)),
    Scenario("live-job-small", "The same to a disk that lies in memory in small pages", "io",
             ("fio", "nbdcopy"), live_job(SMALL_PIECE)),
    Scenario("live-fsync", "fsync after every 8 writes of 4 KiB, to a disk that is being backed up",
             "sync", ("fio", "nbdcopy"), live_fsync),
    Scenario("begin", "Beginning and ending a backup job", "begin", ("fio",), begin),
    Scenario("restart", "A machine's 4 KiB writes while its server is replaced, a job running",
             "pause", (), restarts),
    Scenario("memory", "Memory of a server whose connections have all read", "memory",
             ("nbdsh",), memory_of_servers),
    Scenario("extents-file", "A sparse file of 64 GiB, 4 KiB of data in every 128 KiB", "map",
             ("nbdinfo", "nbdsh"), extents_of_file),
    Scenario("map-dirty", "A dirty bitmap of 64 GiB, every second block of 64 KiB dirty", "map",
             ("fio", "nbdinfo", "nbdsh"), map_dirty),
    Scenario("begin-16t", "Beginning a job with a checkpoint on a disk of 16 TiB", "begin", (),
             begin_16t),
    Scenario("tracking-cost", "4 KiB random writes, 32 in flight, tracked and untracked", "io",
             ("fio",), tracking_cost),
    Scenario("watched", "4 KiB random writes, 8 in flight, a job running, and the page looked at",
             "io", ("fio",), watched_writes),
    Scenario("resume", "Start after a kill, by what the job had preserved", "resume", (),
             resume_jobs),
    Scenario("start", "Start after a kill, with many disks", "resume", (), start),
    Scenario("vhost-buffered", "A guest over vhost-user-blk, through the page cache", "io",
             ("fio",), vhost.buffered),
    Scenario("vhost-direct", "A guest over vhost-user-blk, past the page cache", "io",
             ("fio",), vhost.direct),
    Scenario("vhost-live-job", "A guest over vhost-user-blk whose disk is being backed up", "io",
             ("fio", "nbdcopy"), vhost.live_job(LARGE_PIECE)),
    Scenario("vhost-live-job-small", "The same to a disk that lies in memory in small pages", "io",
             ("fio", "nbdcopy"), vhost.live_job(SMALL_PIECE)),
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
    """Bytes of disk space that a run may take: source, disk, scratch of the disk's size, and the
    fragmented file."""
    return settings.size + 2 * min(settings.size, WRITE_LIMIT) + extents.file_room()


def room_left(directory: Path) -> int:
    return shutil.disk_usage(directory).free
