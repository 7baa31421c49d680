"""What the demo's writer writes, and how one instant is recognised in it."""

import collections
import struct

BLOCK = 4096
RECORD = struct.Struct("<QIQQ")  # first block, count, issued, answered

# What was found in a backup: the blocks that hold a write, the moments between which the backup's
# instant must lie (ns of the monotonic clock), and the writes seen.
Instant = collections.namedtuple("Instant", "changed earliest latest writes")


class Mismatch(Exception):
    """The backup is not what the disk held at one instant."""


def content(number, block):
    """The bytes that write `number` puts into `block`: no two writes and no two blocks are alike."""
    return struct.pack("<QQ", number, block) * (BLOCK // 16)


def read_runs(path):
    with open(path) as lines:
        return [tuple(map(int, line.split())) for line in lines]


def find_instant(backup, original, runs, journal, begin_called, begin_returned):
    """Checks every byte of the backup and returns the instant it shows; raises Mismatch.

    Outside the runs the backup must be the original. Inside, each block must hold the original or
    one whole write. A write that is there was issued before the instant; the next write to the
    same block, which is not there, was answered after it. If all those bounds leave room for one
    moment, and that moment lies within the call that began the job, the backup is the disk at
    that moment.
    """
    with open(journal, "rb") as file:
        writes = list(RECORD.iter_unpack(file.read()))
    history = collections.defaultdict(list)
    for number, (first, count, _, _) in enumerate(writes, 1):
        for block in range(first, first + count):
            history[block].append(number)
    earliest, latest, changed, seen = begin_called, begin_returned, 0, set()
    owned = {block for first, count in runs for block in range(first, first + count)}
    with open(backup, "rb") as got_file, open(original, "rb") as original_file:
        block = 0
        while True:
            got, before = got_file.read(BLOCK), original_file.read(BLOCK)
            if len(got) != len(before):
                raise Mismatch(f"the backup is cut short at block {block}")
            if not got:
                break
            numbers = history.get(block, [])
            if got == before:
                following = numbers[0] if numbers else None
            else:
                number = struct.unpack_from("<Q", got)[0]
                if block not in owned or number not in numbers or got != content(number, block):
                    raise Mismatch(f"block {block} holds bytes that nobody wrote before the instant")
                changed += 1
                seen.add(number)
                earliest = max(earliest, writes[number - 1][2])
                position = numbers.index(number) + 1
                following = numbers[position] if position < len(numbers) else None
            if following is not None:
                latest = min(latest, writes[following - 1][3])
            block += 1
    if earliest > latest:
        raise Mismatch("no single moment fits: the backup mixes older and newer blocks")
    return Instant(changed, earliest, latest, len(seen))
