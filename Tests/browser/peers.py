#!/usr/bin/env python3
"""Peers of the port for watching that nobody wants, and what becomes of them.

usage: peers.py PORT flood|slow|unread|odd      prints what came of it as JSON
"""

import json
import socket
import sys
import time

GET = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def connect(port):
    peer = socket.create_connection(("127.0.0.1", port), timeout=10)
    return peer


def answer(peer):
    """The status of an answer; 0 when the server has hung up."""
    try:
        data = peer.recv(65536)
    except OSError:
        return 0
    return int(data.split(b" ", 2)[1]) if data.startswith(b"HTTP/1.") else 0


def ask(port, request=GET):
    with connect(port) as peer:
        peer.sendall(request)
        return answer(peer)


def is_closed(peer):
    """Whether the server has hung up on a peer that it owes nothing."""
    peer.settimeout(0.01)
    try:
        return peer.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def flood(port):
    """Three hundred connections that say nothing, or begin to: others are answered all the same."""
    peers, statuses = [], []
    for number in range(300):
        peer = connect(port)
        if number % 2:
            peer.sendall(GET[:20])
        peers.append(peer)
        if number % 30 == 0:
            statuses.append(ask(port))
    for _ in range(20):
        peers = [peer for peer in peers if not is_closed(peer)]
        if len(peers) <= 64:
            break
        time.sleep(0.2)
    return {"statuses": statuses, "open": len(peers)}


def slow(port):
    """A byte every second, for ever: the server hangs up in time."""
    begun = time.monotonic()
    with connect(port) as peer:
        try:
            for byte in GET[:-2] + b"X: " + b"y" * 60:
                peer.sendall(bytes([byte]))
                time.sleep(1)
        except OSError:
            pass
    return {"seconds": time.monotonic() - begun}


def unread(port):
    """A hundred requests at once, of which no answer is taken."""
    with connect(port) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(1)
        sent = 0
        try:
            while sent < 100_000:
                peer.sendall(GET.replace(b"/healthz", b"/page.js"))
                sent += 1
        except OSError:
            pass
        return {"sent": sent, "others": ask(port)}


def odd(port):
    """Requests that are none, too long, or ask for what there is not."""
    head = b"\r\nHost: 127.0.0.1\r\n"
    return {
        "post": ask(port, b"POST /v1/domains HTTP/1.1" + head + b"Content-Length: 0\r\n\r\n"),
        "delete": ask(port, b"DELETE /v1/domains/vm1 HTTP/1.1" + head + b"\r\n"),
        "body": ask(port, b"GET /metrics HTTP/1.1" + head + b"Content-Length: 3\r\n\r\nabc"),
        "long": ask(port, b"GET /" + b"a" * 200_000 + b" HTTP/1.1" + head + b"\r\n"),
        "headers": ask(port, b"GET / HTTP/1.1" + head
                       + b"".join(b"X-%d: y\r\n" % n for n in range(500)) + b"\r\n"),
        "none": ask(port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        "rebound": ask(port, b"GET /v1/overview HTTP/1.1\r\nHost: evil.example.com\r\n\r\n"),
        "twoHosts": ask(port, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.com\r\n\r\n"),
        "noHost": ask(port, b"GET /healthz HTTP/1.0\r\n\r\n"),
        "path": ask(port, b"GET /../../etc/passwd HTTP/1.1" + head + b"\r\n"),
        "percent": ask(port, b"GET /%ff%zz HTTP/1.1" + head + b"\r\n"),
        "query": ask(port, b"GET /v1/events?=&==&&since=x&=y& HTTP/1.1" + head + b"\r\n"),
        "noDisk": ask(port, b"GET /v1/domains/vm1/disks/none/map HTTP/1.1" + head + b"\r\n"),
        "good": ask(port),
    }


print(json.dumps({"flood": flood, "slow": slow, "unread": unread, "odd": odd}[sys.argv[2]](
    int(sys.argv[1]))))
