"""What a disk may hold at an instant, from what was written to it and when.

Every block's content says which write it is of. A write that is in an image was issued before the instant;
the next one to the block, which is not, was answered after it. If these bounds leave a moment within the
call that began the job, for all blocks of all its disks, the image is the disks at that moment.
"""

import struct
import threading
import time

BLOCK = 4096
REPEATS = BLOCK // 16


class Torn(Exception):
    """An image is no instant, or a block is of no write."""


def content(block: int, number: int) -> bytes:
    return struct.pack("<QQ", block, number) * REPEATS


class History:
    """The writes of one disk. A block belongs to one writer, which has one write in flight."""

    def __init__(self, blocks: int):
        self.blocks = blocks
        # By block: the number of the first write that is remembered, and [issued, answered] of each from there.
        self._first = [0] * blocks
        self._writes = [[[0.0, 0.0]] for _ in range(blocks)]
        self._lock = threading.Lock()

    def image(self) -> bytes:
        """The disk before the first write."""
        return b"".join(content(block, 0) for block in range(self.blocks))

    def issue(self, first: int, count: int) -> tuple[bytes, list[list]]:
        """A write of some blocks: its content, and what to fill in when it is answered."""
        now, data, entries = time.monotonic(), [], []
        with self._lock:
            for block in range(first, first + count):
                number = self._first[block] + len(self._writes[block])
                entries.append([now, None])
                self._writes[block].append(entries[-1])
                data.append(content(block, number))
        return b"".join(data), entries

    def last(self, block: int) -> int:
        return self._first[block] + len(self._writes[block]) - 1

    def forget(self, before: float) -> None:
        """Writes are forgotten that no instant from then on can show."""
        with self._lock:
            for block, writes in enumerate(self._writes):
                while len(writes) > 1 and writes[1][1] is not None and writes[1][1] < before:
                    del writes[0]
                    self._first[block] += 1

    def bounds(self, image: bytes, what: str) -> tuple[float, float]:
        """The moments between which the disk was this image."""
        if len(image) != self.blocks * BLOCK:
            raise Torn(f"{what}: {len(image)} bytes instead of {self.blocks * BLOCK}")
        low, high = 0.0, float("inf")
        with self._lock:
            for block in range(self.blocks):
                data = image[block * BLOCK:(block + 1) * BLOCK]
                of, number = struct.unpack_from("<QQ", data)
                if of != block or data != data[:16] * REPEATS:
                    raise Torn(f"{what}: block {block} is of no write: {data[:32].hex()}")
                index = number - self._first[block]
                writes = self._writes[block]
                if not 0 <= index < len(writes):
                    raise Torn(f"{what}: block {block} is write {number}, too old or not issued")
                low = max(low, writes[index][0])
                if index + 1 < len(writes) and writes[index + 1][1] is not None:
                    high = min(high, writes[index + 1][1])
        return low, high


def verify(disks: list[tuple[History, bytes]], began: float, answered: float, what: str) -> None:
    """Fails unless there is a moment within the call at which all disks were these images."""
    low, high = began, answered
    for number, (history, image) in enumerate(disks):
        bounds = history.bounds(image, f"{what}, disk {number}")
        low, high = max(low, bounds[0]), min(high, bounds[1])
        if low > high:
            raise Torn(f"{what}: no instant: {low - began:.6f} s to {high - began:.6f} s after the call "
                       f"of {answered - began:.6f} s, at disk {number} ({bounds[0] - began:.6f} s, "
                       f"{bounds[1] - began:.6f} s)")
