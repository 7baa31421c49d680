#!/usr/bin/python3
"""Stands between a server and its upstream: a network that is slow once, and cuts a connection when it is told to.

usage: relay.py LISTEN UPSTREAM SECONDS       LISTEN and UPSTREAM are paths of unix sockets

The first bytes that are as many as a block are on their way for so many seconds, whatever becomes of who has sent
them. SIGUSR1 cuts a connection that is at rest: not the one that has sent last. What was done goes to stdout, a line
each.
"""

import signal
import socket
import sys
import threading
import time

BLOCK = 4096
CONNECTIONS = []
LAST = [0]
HELD = []


class Connection:
    def __init__(self, client, path):
        self.client, self.server = client, socket.socket(socket.AF_UNIX)
        self.server.connect(path)
        self.number = len(CONNECTIONS)
        self.is_cut = False
        CONNECTIONS.append(self)
        for ends in ((self.client, self.server), (self.server, self.client)):
            threading.Thread(target=self.relay, args=ends, daemon=True).start()

    def relay(self, source, target):
        try:
            while data := source.recv(1 << 20):
                if source is self.client:
                    LAST[0] = self.number
                    if len(data) >= BLOCK and not HELD:
                        HELD.append(self.number)
                        print("held", flush=True)
                        time.sleep(float(sys.argv[3]))
                target.sendall(data)
        except OSError:
            pass
        self.cut()

    def cut(self):
        self.is_cut = True
        for end in (self.client, self.server):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def cut_one(*_):
    others = [one for one in CONNECTIONS if not one.is_cut and one.number != LAST[0]]
    if others:
        others[0].cut()
    print(f"cut {others[0].number} of {len(CONNECTIONS)}" if others else "nothing to cut", flush=True)


if __name__ == "__main__":
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    signal.signal(signal.SIGUSR1, cut_one)
    listener.listen(16)
    while True:
        Connection(listener.accept()[0], sys.argv[2])
