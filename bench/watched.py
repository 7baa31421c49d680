"""What it costs a machine whose disk is being backed up that somebody looks at the page: `watched`."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import live
from harness import Files, Settings
from live import DEPTH, DOMAIN
from measure import BenchError, fio_arguments, free_port, run_fio, timed
from pagecache import SMALL_PIECE

NOBODY = "nobody looks"
FOUR = "4 pages are open"
PAGES = 4
# What the page asks for, and how often.
PATHS = ("/v1/overview", "/v1/events?since=0", f"/v1/domains/{DOMAIN}/disks/vda/map")
SECONDS = 2


class Page:
    """Asks for what an open page asks for, until it is closed."""

    def __init__(self, port: int):
        self._port = port
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.problem = ""
        self.answers = 0

    def __enter__(self) -> "Page":
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._closing.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        try:
            while True:
                for path in PATHS:
                    connection.request("GET", path)
                    answer = connection.getresponse()
                    answer.read()
                    if answer.status != 200:
                        raise BenchError(f"{path}: status {answer.status}")
                    self.answers += 1
                if self._closing.wait(SECONDS):
                    return
        except (OSError, http.client.HTTPException, BenchError) as problem:
            self.problem = str(problem)
        finally:
            connection.close()


@contextmanager
def pages(port: int, count: int) -> Iterator[None]:
    open_pages = [Page(port) for _ in range(count)]
    for page in open_pages:
        page.__enter__()
    try:
        yield
    finally:
        for page in open_pages:
            page.__exit__(None, None, None)
    for page in open_pages:
        if page.problem or not page.answers:
            raise BenchError(f"a page was not answered: {page.problem}")


def writes(files: Files, settings: Settings) -> Iterator[tuple[str, dict[str, float]]]:
    """Random writes while a job runs, without and with pages that are open."""
    for case, count in {NOBODY: 0, FOUR: PAGES}.items():
        port = free_port()
        # Long enough for several looks of each.
        seconds = 3 * settings.seconds
        with live.LiveDisk(files.disk(SMALL_PIECE), settings.directory,
                           more=("--metrics", str(port))) as served:
            served.begin()
            arguments = fio_arguments(served.uri, "randwrite", files.disk_size, DEPTH)
            with pages(port, count):
                yield case, run_fio(arguments + timed(seconds), served.pid, seconds + 60)
            served.end()
