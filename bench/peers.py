"""The servers that are compared: how each is started, and what it is called."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from credentials import Credentials

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Export:
    """What a server is asked to serve, and where it listens: a unix socket or a TCP port."""

    file: Path
    directory: Path
    socket: Path | None = None
    port: int | None = None
    writable: bool = False
    tls: Credentials | None = None
    # O_DIRECT instead of the page cache; only nbdpull and the servers of qemu have it.
    direct: bool = False
    connections: int = 16
    # nbdpull only; without it, the default.
    rings: int | None = None

    def uri(self, name: str = "") -> str:
        """The NBD URI of the export with this name."""
        if self.socket is not None:
            return f"nbd+unix:///{quote(name)}?socket={quote(str(self.socket))}"
        if self.tls is not None:
            return self.tls.uri(self.port, quote(name))
        return f"nbd://127.0.0.1:{self.port}/{quote(name)}"


class Peer:
    """One server. Subclasses say which program it is and how it is started."""

    key = ""
    program = ""
    package = ""
    export_name = ""
    version_option = "--version"
    # A server that forks into the background writes its process id here.
    pid_file: str | None = None

    def path(self) -> str | None:
        """The program's path, or None when it is not installed."""
        return shutil.which(self.program)

    def arguments(self, export: Export) -> list[str]:
        raise NotImplementedError

    def missing(self) -> str | None:
        """Why this server cannot take part, or None."""
        if self.path() is None:
            return f"{self.key}: {self.program} is not installed (apt install {self.package})"
        return None

    def version(self) -> str:
        """The program and its version, from the first line that it prints."""
        path = self.path()
        if path is None:
            return f"{self.program} missing"
        done = subprocess.run(
            [path, self.version_option], capture_output=True, text=True, timeout=10, check=False)
        lines = (done.stdout or done.stderr).strip().splitlines()
        number = re.search(r"\d+\.\d+\S*( \(.*\))?", lines[0] if lines else "")
        return f"{self.program} {number[0] if number else 'unknown'}"


class Nbdpull(Peer):
    key = "nbdpull"
    program = "nbdpull"
    package = "none: build it with 'swift build -c release'"

    def path(self) -> str | None:
        named = os.environ.get("NBDPULL_BINARY")
        binary = Path(named) if named else REPOSITORY / ".build/release/nbdpull"
        return str(binary) if os.access(binary, os.X_OK) and binary.is_file() else None

    def missing(self) -> str | None:
        if self.path() is None:
            return ("nbdpull: no executable; build it with 'swift build -c release' or name one "
                    "in NBDPULL_BINARY")
        return None

    def arguments(self, export: Export) -> list[str]:
        place = (["--socket", str(export.socket)] if export.socket
                 else ["--tcp", f"127.0.0.1:{export.port}"])
        mode = [] if export.writable else ["--read-only"]
        if export.rings is not None:
            mode += ["--rings", str(export.rings)]
        if export.direct:
            mode += ["--cache", "none"]
        if export.connections > 100:
            mode += ["--max-connections", str(export.connections)]
        return [self.path(), "export", *mode, *place, *self.tls(export), str(export.file)]

    @staticmethod
    def tls(export: Export) -> list[str]:
        if export.tls is None:
            return []
        if export.tls.uses_key:
            return ["--tls-psk", str(export.tls.key_file)]
        return ["--tls-certs", str(export.tls.directory), "--tls-verify-peer", "no"]


class QemuNbd(Peer):
    key = "qemu-nbd"
    program = "qemu-nbd"
    package = "qemu-utils"

    def arguments(self, export: Export) -> list[str]:
        place = (["-k", str(export.socket)] if export.socket
                 else ["-b", "127.0.0.1", "-p", str(export.port)])
        mode = [] if export.writable else ["-r"]
        tls = ([] if export.tls is None
               else ["--object", export.tls.qemu_object(), "--tls-creds", "tls0"])
        if export.direct:
            mode += ["--cache=none"]
        return [self.path(), "-f", "raw", "-t", "-e", str(export.connections), "-x", "", *mode,
                *place, *tls, "--aio=io_uring", str(export.file)]


class QemuStorageDaemon(Peer):
    key = "qemu-storage-daemon"
    program = "qemu-storage-daemon"
    package = "qemu-system-common"

    def arguments(self, export: Export) -> list[str]:
        mode = "off" if export.writable else "on"
        return [self.path(),
                "--blockdev", f"driver=file,node-name=f0,filename={export.file},aio=io_uring,"
                              f"cache.direct=off,read-only={mode}",
                "--nbd-server", self.server(export),
                "--export", "type=nbd,id=e0,node-name=f0,name=,"
                            f"writable={'on' if export.writable else 'off'}"]

    def copy_before_write(self, export: Export, scratch: Path) -> list[str]:
        """Serves the disk as `live` and its state at the start as `snapshot`; old content is
        saved to `scratch` before it is overwritten."""
        def file(name: str, path: Path, direct: bool) -> str:
            return (f"driver=file,node-name={name},filename={path},aio=io_uring,"
                    f"cache.direct={'on' if direct else 'off'}")
        return [self.path(),
                "--blockdev", file("disk", export.file, export.direct),
                "--blockdev", file("scratch", scratch, False),
                "--blockdev", "driver=copy-before-write,node-name=cbw,file=disk,target=scratch",
                "--blockdev", "driver=snapshot-access,node-name=before,file=cbw",
                "--nbd-server", self.server(export),
                "--export", "type=nbd,id=e0,node-name=cbw,name=live,writable=on",
                "--export", "type=nbd,id=e1,node-name=before,name=snapshot,writable=off"]

    @staticmethod
    def server(export: Export) -> str:
        place = (f"addr.type=unix,addr.path={export.socket}" if export.socket
                 else f"addr.type=inet,addr.host=127.0.0.1,addr.port={export.port}")
        return f"{place},max-connections={export.connections}"


class Nbdkit(Peer):
    key = "nbdkit"
    program = "nbdkit"
    package = "nbdkit"

    def arguments(self, export: Export) -> list[str]:
        place = (["-U", str(export.socket)] if export.socket
                 else ["-i", "127.0.0.1", "-p", str(export.port)])
        mode = [] if export.writable else ["-r"]
        return [self.path(), "-f", *mode, *place, *self.tls(export), "file", str(export.file)]

    @staticmethod
    def tls(export: Export) -> list[str]:
        if export.tls is None:
            return ["--tls=off"]
        if export.tls.uses_key:
            return ["--tls=require", f"--tls-psk={export.tls.key_file}"]
        return ["--tls=require", f"--tls-certificates={export.tls.directory}"]


class NbdServer(Peer):
    key = "nbd-server"
    program = "nbd-server"
    package = "nbd-server"
    export_name = "export"
    version_option = "-V"
    splice = False
    pid_file = "nbd-server.pid"

    def arguments(self, export: Export) -> list[str]:
        place = (f"unixsock = {export.socket}\n" if export.socket
                 else f"listenaddr = 127.0.0.1\nport = {export.port}\n")
        text = ("[generic]\n" + place + "allowlist = true\n"
                f"[{self.export_name}]\nexportname = {export.file}\n"
                f"readonly = {'false' if export.writable else 'true'}\n")
        if self.splice:
            text += "splice = true\n"
        config = export.directory / f"{self.key}.conf"
        config.write_text(text, encoding="utf-8")
        # Its foreground option serves a single connection only, so it runs in the background.
        return [self.path(), "-C", str(config), "-p", str(export.directory / self.pid_file)]


class NbdServerSplice(NbdServer):
    key = "nbd-server splice"
    splice = True


NBDPULL = Nbdpull()
QEMU_STORAGE_DAEMON = QemuStorageDaemon()
READERS = [NBDPULL, NbdServerSplice(), NbdServer(), Nbdkit(), QemuNbd(), QEMU_STORAGE_DAEMON]
# Those whose TLS libnbd's client gets on with.
TLS_READERS = [peer for peer in READERS if isinstance(peer, Nbdpull | Nbdkit | QemuNbd)]
WRITERS = [peer for peer in READERS if not isinstance(peer, NbdServerSplice)]

CLIENTS = {"nbdcopy": "libnbd-bin", "nbdinfo": "libnbd-bin", "nbdsh": "python3-libnbd",
           "fio": "fio"}


def missing_client(program: str) -> str | None:
    """Why this client program cannot be used, or None."""
    if shutil.which(program) is None:
        return f"{program} is not installed (apt install {CLIENTS[program]})"
    return None


def client_version(program: str) -> str:
    """The first line of a client's version text."""
    if missing_client(program):
        return f"{program} missing"
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else f"{program} unknown"
