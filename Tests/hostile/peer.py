#!/usr/bin/python3
"""Peers that do not behave, each started by a test of Tests/InteropTests; results are one JSON line.

usage: peer.py COMMAND ADDRESS [ARGUMENT...]      ADDRESS: a unix socket's path, or HOST:PORT
"""

import json
import os
import resource
import select
import socket
import struct
import sys
import time

IHAVEOPT = 0x49484156454F5054
EXPORT_NAME, ABORT, LIST, INFO, GO, STRUCTURED, SET_CONTEXT = 1, 2, 3, 6, 7, 8, 10
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FLAGS = struct.pack(">I", 3)
MARK = b"\x1b[31mMARK\x07\r\n../%s%n"


def connect(address, patience=30):
    if address.startswith("/"):
        peer = socket.socket(socket.AF_UNIX)
        # Blocking: with a timeout a full backlog would be an error.
        peer.connect(address)
    else:
        host, port = address.rsplit(":", 1)
        peer = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        peer.connect((host.strip("[]"), int(port)))
    peer.settimeout(patience)
    return peer


def option(code, payload=b"", length=None):
    return struct.pack(">QII", IHAVEOPT, code, len(payload) if length is None else length) + payload


def counted(text):
    return struct.pack(">I", len(text)) + text


def go(name, code=GO):
    return option(code, counted(name) + struct.pack(">H", 0))


def request(command, offset=0, length=0, flags=0, cookie=1, magic=0x25609513):
    return struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length)


def receive(peer, count):
    data = b""
    while len(data) < count:
        more = peer.recv(count - len(data))
        if not more:
            raise EOFError(f"closed after {len(data)} of {count} bytes")
        data += more
    return data


def answer(peer):
    """The rest of an option's reply: type and data of each part."""
    while True:
        _, code, kind, length = struct.unpack(">QIII", receive(peer, 20))
        data = receive(peer, length)
        yield kind, data
        if kind == 1 or kind >> 31:
            return


def begin(address, name, structured=False, contexts=()):
    """A connection in its transmission phase."""
    peer = connect(address)
    receive(peer, 18)
    stream = FLAGS
    count = 1
    if structured:
        stream += option(STRUCTURED)
        count += 1
    if contexts:
        queries = b"".join(counted(text) for text in contexts)
        stream += option(SET_CONTEXT, counted(name) + struct.pack(">I", len(contexts)) + queries)
        count += 1
    peer.sendall(stream + go(name))
    for _ in range(count):
        kind = [kind for kind, _ in answer(peer)][-1]
        if kind != 1:
            raise RuntimeError(f"refused with {kind:#x}")
    return peer


def is_closed(peer, within):
    """Whether the server hangs up in time, whatever it says before."""
    deadline = time.monotonic() + within
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([peer], [], [], left)[0]:
            return False
        try:
            if not peer.recv(1 << 16):
                return True
        except ConnectionError:
            return True


def raise_descriptor_limit():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# What a peer can have sent when it stops in mid-handshake, by state.
STATES = {
    "silent": b"",
    "half-flags": FLAGS[:2],
    "flags": FLAGS,
    "half-magic": FLAGS + option(LIST)[:5],
    "half-header": FLAGS + option(LIST)[:12],
    "half-payload": FLAGS + go(b"vda")[:20],
    "skipping": FLAGS + option(99, b"x" * 1000, length=1 << 24),
    "after-list": FLAGS + option(LIST),
    "after-info": FLAGS + go(b"vda", INFO),
    "after-contexts": FLAGS + option(STRUCTURED)
    + option(SET_CONTEXT, counted(b"vda") + struct.pack(">I", 1) + counted(b"base:allocation")),
}


def flood(address, total, at_once, seconds):
    """Connects `total` times, stalls in each state in turn, and keeps `at_once` open."""
    raise_descriptor_limit()
    states = list(STATES.values())
    total, at_once, seconds = int(total), int(at_once), float(seconds)
    peers, refused, start = [], 0, time.monotonic()
    for index in range(total):
        try:
            peer = connect(address)
            peer.setblocking(False)
            peer.send(states[index % len(states)])
            peers.append(peer)
        except (BlockingIOError, ConnectionError, socket.timeout):
            refused += 1
        if len(peers) > at_once:
            peers.pop(0).close()
        # Evenly, so that there are newcomers all the time.
        ahead = start + seconds * index / total - time.monotonic()
        if ahead > 0.02:
            time.sleep(ahead)
    return {"connects": total, "refused": refused, "seconds": time.monotonic() - start}


def hangups(address, name):
    """Hangs up after every byte of a negotiation and of some requests."""
    name = name.encode()
    stream = (FLAGS + option(LIST) + option(STRUCTURED) + go(name, INFO) + option(99, b"abc")
              + option(SET_CONTEXT, counted(name) + struct.pack(">I", 1) + counted(b"base:"))
              + go(name) + request(READ, 0, 65536) + request(WRITE, 0, 5000) + b"w" * 5000
              + request(BLOCK_STATUS, 0, 65536))
    cuts = list(range(320)) + list(range(320, len(stream), 61))
    for cut in cuts:
        peer = connect(address)
        peer.send(stream[:cut])
        if cut % 3 == 1:
            # With a reset instead of a farewell, where there is such a thing.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    return {"hangups": len(cuts)}


def never_read(address, name, count, seconds):
    """Asks for as much as the server takes on `count` connections and never reads a reply."""
    raise_descriptor_limit()
    name = name.encode()
    peers = []
    for index in range(int(count)):
        peer = begin(address, name, structured=index % 2 == 0,
                     contexts=[b"base:allocation"] if index % 4 == 0 else ())
        peer.setblocking(False)
        peers.append(peer)
    wanted = []
    for index in range(len(peers)):
        kinds = [(READ, 4096), (READ, 256 << 10), (READ, 32 << 20), (CACHE, 1 << 20), (READ, 20000),
                 (FLUSH, 0), (99, 0)]
        if index % 4 == 0:
            kinds.append((BLOCK_STATUS, 8 << 20))
        wanted.append(b"".join(request(*((kinds[i % len(kinds)][0], 0, kinds[i % len(kinds)][1])))
                               for i in range(400)))
    deadline = time.monotonic() + float(seconds)
    sent = 0
    print("ready", flush=True)
    while time.monotonic() < deadline:
        for peer, stream in zip(peers, wanted):
            try:
                sent += peer.send(stream)
            except BlockingIOError:
                pass
        time.sleep(0.05)
    return {"peers": len(peers), "sentBytes": sent}


def half_writes(address, name, count, seconds):
    """Announces the longest writes there are on `count` connections and sends half of a byte."""
    peers = [begin(address, name.encode()) for _ in range(int(count))]
    for peer in peers:
        peer.sendall(request(WRITE, 0, 64 << 20) + b"x")
    print("ready", flush=True)
    time.sleep(float(seconds))
    return {"peers": len(peers)}


def closes(address, name, within, *what):
    """How long it takes until a client that has done `what` is hung up on, in seconds."""
    peer = begin(address, name.encode())
    if "stall" in what:
        for index in range(300):
            try:
                peer.setblocking(False)
                peer.send(request(READ, 0, 256 << 10, cookie=index))
            except BlockingIOError:
                break
    elif "half" in what:
        peer.send(request(READ, 0, 4096)[:10])
    start = time.monotonic()
    poll = select.poll()
    # Nothing is read: only the server's end of the connection is looked at.
    poll.register(peer, select.POLLRDHUP)
    closed = bool(poll.poll(float(within) * 1000))
    return {"closed": closed, "seconds": time.monotonic() - start}


def holds(address, name, count):
    """Opens `count` working connections; how many were served?"""
    served = 0
    peers = []
    for _ in range(int(count)):
        try:
            peer = begin(address, name.encode())
            peer.sendall(request(READ, 0, 512))
            receive(peer, 16 + 512)
            peers.append(peer)
            served += 1
        except (EOFError, ConnectionError, socket.timeout):
            pass
    return {"served": served}


def zeroes_and_goes(address, name, length):
    """Asks for zeroing in every way there is room for, then vanishes."""
    peer = begin(address, name.encode())
    for index in range(120):
        # NO_HOLE, so that it is real work.
        peer.sendall(request(WRITE_ZEROES, 0, int(length), flags=2, cookie=index))
    time.sleep(0.3)
    peer.close()
    return {}


def marked(address, name):
    """Puts marked bytes into every field that holds some; returns all texts that came back."""
    name = name.encode()
    texts = []
    streams = [option(99, MARK), go(MARK), go(MARK, INFO), option(LIST, MARK),
               option(STRUCTURED, MARK),
               option(SET_CONTEXT, counted(MARK) + struct.pack(">I", 1) + counted(MARK)),
               option(9, counted(name) + struct.pack(">I", 1) + counted(b"base:" + MARK)),
               option(GO, struct.pack(">I", 0xFFFFFFFF) + MARK), option(5, MARK)]
    for stream in streams:
        peer = connect(address)
        receive(peer, 18)
        peer.sendall(FLAGS + stream)
        try:
            texts += [data.decode("latin1") for kind, data in answer(peer) if kind >> 31]
        except EOFError:
            pass
        peer.close()
    for stream in (MARK * 4, FLAGS + MARK * 4, FLAGS + option(EXPORT_NAME, MARK)):
        peer = connect(address)
        receive(peer, 18)
        peer.sendall(stream)
        texts.append("" if is_closed(peer, 15) else "not closed")
        peer.close()
    peer = begin(address, name, structured=True)
    bad = [request(77), request(READ, 1 << 62, 16), request(READ, 0, 16, flags=0xFF00),
           request(WRITE, 1 << 62, len(MARK)) + MARK, request(TRIM, 1 << 62, 4096),
           request(BLOCK_STATUS, 0, 16), request(READ, 0, 0xFFFFFFFF)]
    for stream in bad:
        peer.sendall(stream)
        magic, flags, kind, _, length = struct.unpack(">IHHQI", receive(peer, 20))
        data = receive(peer, length)
        if kind >> 15:
            texts.append(data[6:6 + struct.unpack(">H", data[4:6])[0]].decode("latin1"))
    peer.sendall(MARK * 4)
    texts.append("" if is_closed(peer, 15) else "not closed")
    return {"texts": texts, "mark": MARK.decode("latin1")}


def stalled(address, count, seconds):
    """Holds `count` connections that stall in their handshakes."""
    raise_descriptor_limit()
    states = list(STATES.values())
    peers = []
    for index in range(int(count)):
        peer = connect(address)
        peer.send(states[index % len(states)])
        peers.append(peer)
    print("ready", flush=True)
    time.sleep(float(seconds))
    return {"peers": len(peers)}


def rude(address, name):
    """Every request that libnbd lets through with its own checks switched off."""
    import nbd  # python3-libnbd

    found = {}
    for structured in (True, False):
        handle = nbd.NBD()
        handle.set_strict_mode(0)
        handle.set_request_structured_replies(structured)
        handle.set_export_name(name)
        handle.connect_unix(address)
        size = handle.get_size()
        calls = {
            "read-beyond": lambda: handle.pread(512, size),
            "read-across": lambda: handle.pread(1024, size - 512),
            "read-unknown-flags": lambda: handle.pread(512, 0, 0x80),
            "read-empty": lambda: handle.pread(0, 0) and None,
            "write": lambda: handle.pwrite(b"x" * 512, 0),
            "write-beyond": lambda: handle.pwrite(b"x" * 512, size),
            "write-unknown-flags": lambda: handle.pwrite(b"x" * 512, 0, 0xF0),
            "write-empty": lambda: handle.pwrite(b"", 0),
            "trim-beyond": lambda: handle.trim(1 << 31, size),
            "zero-beyond": lambda: handle.zero(1 << 31, size),
            "zero-fast-and-keep": lambda: handle.zero(4096, 0, 2 | 16),
            "cache-beyond": lambda: handle.cache(4096, size),
            "flush-flags": lambda: handle.flush(0xFF),
            "status-without-context": lambda: handle.block_status(512, 0, lambda *_: 0),
            "status-empty": lambda: handle.block_status(0, 0, lambda *_: 0),
        }
        for what, call in calls.items():
            try:
                call()
                result = ""
            except nbd.Error as error:
                result = error.errno
            found[f"{what}{'' if structured else '-simple'}"] = result
            if handle.aio_is_dead() or handle.aio_is_closed():
                found[what] = "CLOSED"
                return found
        handle.shutdown()
    return found


COMMANDS = {
    "flood": flood, "hangups": hangups, "never-read": never_read, "half-writes": half_writes,
    "closes": closes, "holds": holds, "zeroes-and-goes": zeroes_and_goes, "marked": marked,
    "stalled": stalled, "rude": rude,
}


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in COMMANDS:
        print(__doc__, file=sys.stderr)
        sys.exit(64)
    print(json.dumps(COMMANDS[sys.argv[1]](*sys.argv[2:])))


main()
