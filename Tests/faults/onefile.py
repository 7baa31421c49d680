#!/usr/bin/env python3
"""A file system of one file, `disk`, whose reads and syncs fail as they are told to.

usage: onefile.py MOUNTPOINT SIZE PLAN

Speaks the kernel's FUSE protocol over /dev/fuse, so nothing has to be installed. While the file PLAN
holds numbers, each read takes the first of them away and fails with it as its errno; so do syncs with
PLAN.sync. Prints a line when it is mounted, and ends when it is unmounted.
"""

import ctypes
import errno
import os
import struct
import sys

MOUNTPOINT, SIZE, PLAN = sys.argv[1], int(sys.argv[2]), sys.argv[3]
ROOT, FILE = 1, 2
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS = 1, 2, 3, 4, 14, 15, 16, 17
RELEASE, FSYNC, FLUSH, INIT, OPENDIR, RELEASEDIR, ACCESS = 18, 20, 25, 26, 27, 29, 34
INTERRUPT, DESTROY, BATCH_FORGET = 36, 38, 42
DIRECT_IO = 1

content = bytearray(SIZE)


def attributes(node):
    mode, size = (0o40700, 0) if node == ROOT else (0o100600, SIZE)
    return struct.pack("<6Q10I", node, size, (size + 511) // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0,
                       4096, 0)


def planned(plan):
    """The errno that this call fails with, or 0."""
    try:
        with open(plan) as file:
            numbers = file.read().split()
    except FileNotFoundError:
        return 0
    if not numbers:
        return 0
    with open(plan, "w") as file:
        file.write(" ".join(numbers[1:]))
    return int(numbers[0])


def answer(code, node, body):
    """The reply to a request: bytes, or an errno."""
    if code == INIT:
        minor = min(struct.unpack_from("<2I", body)[1], 31)
        return struct.pack("<4I2H2I2H8I", 7, minor, 0, 0, 16, 12, 1 << 17, 1, 32, 0, *[0] * 8)
    if code == LOOKUP:
        if body.split(b"\0")[0] != b"disk":
            return errno.ENOENT
        return struct.pack("<4Q2I", FILE, 0, 3600, 3600, 0, 0) + attributes(FILE)
    if code in (GETATTR, SETATTR):
        return struct.pack("<Q2I", 3600, 0, 0) + attributes(node)
    if code in (OPEN, OPENDIR):
        return struct.pack("<QIi", 0, DIRECT_IO, 0)
    if code == READ:
        _, offset, size = struct.unpack_from("<2QI", body)
        return planned(PLAN) or bytes(content[offset:offset + size])
    if code == WRITE:
        _, offset, size = struct.unpack_from("<2QI", body)
        content[offset:offset + size] = body[40:40 + size]
        return struct.pack("<2I", size, 0)
    if code == STATFS:
        return struct.pack("<5Q10I", 1 << 20, 1 << 19, 1 << 19, 0, 0, 4096, 255, 4096, *[0] * 7)
    if code == FSYNC:
        return planned(PLAN + ".sync") or b""
    if code in (RELEASE, FLUSH, RELEASEDIR, ACCESS, DESTROY):
        return b""
    return errno.ENOSYS


def main():
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    library = ctypes.CDLL(None, use_errno=True)
    if library.mount(b"onefile", MOUNTPOINT.encode(), b"fuse", 0, options):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    while True:
        try:
            request = os.read(device, (1 << 17) + 4096)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            if error.errno in (errno.EINTR, errno.ENOENT):
                continue
            raise
        length, code, number, node = struct.unpack_from("<2I2Q", request)
        if code in (FORGET, BATCH_FORGET, INTERRUPT):
            continue
        reply = answer(code, node, request[40:length])
        failed = reply if isinstance(reply, int) else 0
        data = b"" if failed else reply
        os.write(device, struct.pack("<IiQ", 16 + len(data), -failed, number) + data)


main()
