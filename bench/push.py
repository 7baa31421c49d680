"""A backup that the server writes itself, against qemu-img and the job that libvirt's push is: `push`."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from harness import Files, Result, Settings, attempt, say
from live import DOMAIN, LiveDisk
from measure import BenchError, run_client
from peers import NBDPULL

PUSH, CONVERT, PULL = NBDPULL.key, "qemu-img convert, the file", "qemu-img convert, a job's export"
# libvirt's push has qemu do this, whose main loop the machine shares.
JOB = "blockdev-backup in qemu-storage-daemon"
FORMATS = ["raw", "qcow2"]
WAIT_SECONDS = 600


def push(files: Files, settings: Settings, result: Result) -> None:
    sides: dict[str, Callable[[Path, str, Settings], float]] = {
        PUSH: by_server, CONVERT: by_qemu_img, PULL: from_export, JOB: by_job}
    source = files.source()
    for number in range(1, settings.rounds + 1):
        for format in FORMATS:
            # What runs second finds memory as the first has left it.
            for name, side in list(sides.items())[::1 if number % 2 else -1]:
                say(f"{result.name}: round {number} of {settings.rounds}, {format}, {name}")
                with attempt(result, f"{format}, {name}, round {number}"):
                    os.sync()
                    seconds = side(source, format, settings)
                    result.add(name, format, {"value": settings.size / seconds / 1e9,
                                              "seconds": seconds})
    result.notes += ["all write to a new file and make it durable; the source is in the page cache"]


def by_server(source: Path, format: str, settings: Settings) -> float:
    target = settings.directory / f"pushed.{format}"
    target.unlink(missing_ok=True)
    xml = (f"<domainbackup><disks><disk name='vda'><driver type='{format}'/>"
           f"<target file='{target}'/></disk></disks></domainbackup>")
    try:
        with LiveDisk(source, settings.directory) as served:
            started = time.monotonic()
            served.call("POST", f"/v1/domains/{DOMAIN}/jobs", {"backupXML": xml})
            while served.information().get("id") is not None:
                if time.monotonic() - started > WAIT_SECONDS:
                    raise BenchError(f"the push was not done after {WAIT_SECONDS} s")
                # To ask costs the server what it costs nobody else here.
                time.sleep(0.02)
            took = time.monotonic() - started
            ended = served.call(
                "GET", f"/v1/domains/{DOMAIN}/job?completed=true&keepCompleted=true")
            if ended.get("outcome") != "completed":
                raise BenchError(f"the push has failed: {ended.get('errorMessage')}")
            return took
    finally:
        for suffix in ["", ".partial", ".failed"]:
            Path(f"{target}{suffix}").unlink(missing_ok=True)


def by_qemu_img(source: Path, format: str, settings: Settings) -> float:
    return converted(str(source), format, settings)


def from_export(source: Path, format: str, settings: Settings) -> float:
    with LiveDisk(source, settings.directory) as served:
        uri = served.begin()
        try:
            return converted(uri, format, settings)
        finally:
            served.end()


def converted(source: str, format: str, settings: Settings) -> float:
    program = shutil.which("qemu-img")
    if program is None:
        raise BenchError("qemu-img is not installed")
    target = settings.directory / f"converted.{format}"
    try:
        # Its own default is not to make anything durable.
        _, wall, _ = run_client(
            [program, "convert", "-f", "raw", "-O", format, "-t", "writeback", "-W", "-m", "8",
             source, str(target)], timeout=WAIT_SECONDS)
        started = time.monotonic()
        with target.open("rb+") as file:
            os.fsync(file.fileno())
        return wall + time.monotonic() - started
    finally:
        target.unlink(missing_ok=True)


def by_job(source: Path, format: str, settings: Settings) -> float:
    """A full backup by qemu's own job, as libvirt asks for it; the target is made before."""
    program, image = shutil.which("qemu-storage-daemon"), shutil.which("qemu-img")
    if program is None or image is None:
        raise BenchError("qemu-storage-daemon or qemu-img is not installed")
    target = settings.directory / f"job.{format}"
    monitor = settings.directory / "qmp.sock"
    target.unlink(missing_ok=True)
    run_client([image, "create", "-q", "-f", format, str(target), str(settings.size)], timeout=60)
    daemon = subprocess.Popen(
        [program, "--chardev", f"socket,id=qmp,path={monitor},server=on,wait=off",
         "--monitor", "chardev=qmp",
         "--blockdev", f"driver=file,node-name=from,filename={source},aio=io_uring",
         "--blockdev", "driver=raw,node-name=disk,file=from",
         "--blockdev", f"driver=file,node-name=to,filename={target},aio=io_uring",
         "--blockdev", f"driver={format},node-name=target,file=to"],
        stdin=subprocess.DEVNULL)
    try:
        with connected(monitor) as peer, peer.makefile("rw") as talk:
            talk.readline()
            tell(talk, "qmp_capabilities")
            started = time.monotonic()
            tell(talk, "blockdev-backup", device="disk", target="target", sync="full",
                 **{"job-id": "job", "auto-dismiss": True})
            ended = {}
            while ended.get("event") != "BLOCK_JOB_COMPLETED":
                ended = json.loads(talk.readline())
            if ended["data"].get("error"):
                raise BenchError(f"the job has failed: {ended['data']['error']}")
            tell(talk, "quit")
            daemon.wait(timeout=60)
        with target.open("rb+") as file:
            os.fsync(file.fileno())
        return time.monotonic() - started
    finally:
        daemon.kill()
        daemon.wait()
        for path in [target, monitor]:
            path.unlink(missing_ok=True)


def connected(path: Path) -> socket.socket:
    for _ in range(100):
        peer = socket.socket(socket.AF_UNIX)
        try:
            peer.connect(str(path))
            peer.settimeout(WAIT_SECONDS)
            return peer
        except OSError:
            peer.close()
            time.sleep(0.05)
    raise BenchError("qemu-storage-daemon does not answer")


def tell(talk, command: str, **arguments) -> None:
    talk.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    talk.flush()
    answer: dict = {}
    while "return" not in answer and "error" not in answer:
        answer = json.loads(talk.readline())
    if "error" in answer:
        raise BenchError(f"{command}: {answer['error']['desc']}")
