"""A full backup of a disk in use, or of a stopped machine's: `pull-job-4`."""

from harness import Files, Result, Settings, attempt, export_of, say, taking_part
from live import PEERS, Writer, begun
from measure import pull, serve
from peers import Nbdkit, NbdServerSplice, Peer, QemuNbd

CONNECTIONS = 4
WRITES_PER_SECOND = 500

BUFFERED = "running machine, buffered"
DIRECT = "running machine, cache none"
STOPPED = "stopped machine, buffered"
CASES = [BUFFERED, DIRECT, STOPPED]

# In the page cache a pass takes tenths of a second; several make the clock ticks of CPU time count.
PASSES = {BUFFERED: 3, DIRECT: 1, STOPPED: 3}
PLAIN = {BUFFERED: [NbdServerSplice(), Nbdkit(), QemuNbd()], DIRECT: [QemuNbd()],
         STOPPED: [NbdServerSplice(), Nbdkit(), QemuNbd()]}


def pull_job(files: Files, settings: Settings, result: Result) -> None:
    taking_part(list({peer.key: peer for peers in [PEERS, *PLAIN.values()] for peer in peers}
                     .values()), result)
    for number in range(1, settings.rounds + 1):
        for case in CASES:
            sides = [(peer.key, peer, of_job) for peer in PEERS]
            sides += [(f"{peer.key}, plain file", peer, of_plain_file) for peer in PLAIN[case]]
            for name, peer, side in sides:
                if peer.missing() is None:
                    say(f"{result.name}: round {number} of {settings.rounds}, {case}, {name}")
                    with attempt(result, f"{case}, {name}, round {number}"):
                        result.add(name, case, side(peer, case, files, settings))
    result.notes += [
        "'plain file': no point in time and no machine that writes; the file is served read-only",
        "cache none: nbdkit and nbd-server have no O_DIRECT, they take no part in it"]


def of_job(peer: Peer, case: str, files: Files, settings: Settings) -> dict[str, float]:
    direct, size = case == DIRECT, files.disk_size
    disk = files.disk()
    if direct:
        files.disk_went_direct()
    with begun(peer, disk, settings.directory, direct) as target:
        def measured() -> dict[str, float]:
            return pull(target.backup, size, CONNECTIONS, target.pid, PASSES[case])
        if case == STOPPED:
            return measured()
        with Writer(target.live, size, WRITES_PER_SECOND):
            return measured()


def of_plain_file(peer: Peer, case: str, files: Files, settings: Settings) -> dict[str, float]:
    export = export_of(files.disk(), settings, direct=case == DIRECT)
    with serve(peer, export) as server:
        return pull(export.uri(peer.export_name), files.disk_size, CONNECTIONS, server.pid,
                    PASSES[case])
