#!/usr/bin/python3
"""A qemu-storage-daemon that shares memory as a test wants it to.

usage: program.py MODE PROGRAM [ARGUMENT...]      PROGRAM: the real one

old      was built without the kind of export that shares memory
refuse   does not tell so before it has to share
end      ends the connection at the first request, every time
jump     says that it has done what nobody has asked
head     says that it has done another request
error    carries nothing out, and says so
keep     does what it should, one request at a time, and logs what it did
deaf     does not end when it is told to

All but the first and the last serve the memory themselves, and leave everything else to the real program, by
which they also read and write.
"""

import array
import ctypes
import json
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading

import nbd

BASE = 1 << 40
FEATURES = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 6
EXTENSIONS = 1 << 3 | 1 << 9


class Program:
    def __init__(self, mode, place, connection):
        self.mode, self.connection = mode, connection
        self.real = nbd.NBD()
        self.real.set_export_name("disk")
        self.real.connect_unix(place)
        self.memory = None
        self.places = None
        self.size = 0
        self.taken = self.used = 0
        self.kick = self.call = None

    def receive(self, count):
        data, passed = b"", []
        while len(data) < count:
            more, ancillary, _, _ = self.connection.recvmsg(count - len(data), 256)
            if not more:
                raise EOFError
            data += more
            for _, kind, room in ancillary:
                if kind == socket.SCM_RIGHTS:
                    numbers = array.array("i")
                    numbers.frombytes(room)
                    passed += numbers
        return data, passed

    def serve(self):
        while True:
            header, passed = self.receive(12)
            request, flags, size = struct.unpack("<III", header)
            payload, more = self.receive(size) if size else (b"", [])
            answer = self.message(request, payload, passed + more)
            if answer is None and flags & 8:
                answer = struct.pack("<Q", 0)
            if answer is not None:
                self.connection.sendall(struct.pack("<III", request, 5, len(answer)) + answer)
            if request == 18:
                threading.Thread(target=self.run, daemon=True).start()

    def message(self, request, payload, passed):
        if request == 1:
            return struct.pack("<Q", FEATURES)
        if request == 15:
            return struct.pack("<Q", EXTENSIONS)
        if request == 24:
            sectors = self.real.get_size() // 512
            return payload[:12] + struct.pack("<QIIHBBI", sectors, 0, 0, 0, 0, 0, 512) + bytes(36)
        if request == 5:
            size = struct.unpack_from("<Q", payload, 16)[0]
            self.memory = mmap.mmap(passed[0], size)
        if request == 8:
            self.size = struct.unpack_from("<I", payload, 4)[0]
        if request == 9:
            self.places = [place - BASE for place in struct.unpack_from("<QQQ", payload, 8)]
        if request == 12:
            self.kick = passed[0]
        if request == 13:
            self.call = passed[0]
        return None

    def number(self, kind, place):
        return struct.unpack_from("<" + kind, self.memory, place)[0]

    def run(self):
        descriptors, used, available = self.places
        while True:
            # Asks to be kicked for each.
            struct.pack_into("<H", self.memory, used + 4 + 8 * self.size, self.taken)
            while self.number("H", available + 2) == self.taken:
                select.select([self.kick], [], [])
                os.read(self.kick, 8)
            head = self.number("H", available + 4 + 2 * (self.taken % self.size))
            self.taken = self.taken + 1 & 0xFFFF
            if self.mode == "end":
                return self.connection.shutdown(socket.SHUT_RDWR)
            status = 1 if self.mode == "error" else self.carry_out(descriptors, head)
            if self.mode == "jump":
                self.used += 100
            if self.mode == "head":
                head += 1
            self.finish(descriptors, used, head, status)

    def chain(self, descriptors, head):
        parts = []
        while True:
            address, count, flags, following = struct.unpack_from(
                "<QIHH", self.memory, descriptors + 16 * head)
            parts.append((address - BASE, count))
            if not flags & 1:
                return parts
            head = following

    def carry_out(self, descriptors, head):
        (header, _), (data, count), _ = self.chain(descriptors, head)
        kind, sector = self.number("I", header), self.number("Q", header + 8)
        if kind == 0:
            self.memory[data:data + count] = self.real.pread(count, sector * 512)
        else:
            self.real.pwrite(self.memory[data:data + count], sector * 512)
        print("read" if kind == 0 else "write", sector, count, file=LOG, flush=True)
        return 0

    def finish(self, descriptors, used, head, status):
        if self.mode != "head":
            self.memory[self.chain(descriptors, head)[2][0]] = status
        struct.pack_into(
            "<II", self.memory, used + 4 + 8 * (self.used % self.size), head, 1)
        self.used = self.used + 1 & 0xFFFF
        struct.pack_into("<H", self.memory, used + 2, self.used)
        os.write(self.call, struct.pack("<Q", 1))


def serve(mode, place, path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(8)

    def accept():
        while True:
            connection, _ = listener.accept()
            print("connection", file=LOG, flush=True)
            try:
                Program(mode, place, connection).serve()
            except (EOFError, OSError):
                connection.close()

    threading.Thread(target=accept, daemon=True).start()


def end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def main():
    global LOG
    mode, program, *arguments = sys.argv[1:]
    LOG = open(os.environ["PROGRAM_LOG"], "a", encoding="utf-8")
    if mode == "old":
        assert not [word for word in arguments if "vhost-user-blk" in word]
    if "--help" in arguments:
        told = subprocess.run([program, "--help"], stdout=subprocess.PIPE, check=True).stdout
        print(told.decode().replace("vhost-user-blk", "gone") if mode == "old" else told.decode())
        return 0
    if mode == "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # The real one ends with this one.
        return subprocess.Popen([program] + arguments, close_fds=False, preexec_fn=end_with_parent).wait()
    shared = [index for index, word in enumerate(arguments) if "vhost-user-blk" in word]
    if mode == "refuse" and shared:
        print("Parameter 'type' does not accept value 'vhost-user-blk'", file=sys.stderr)
        return 1
    if shared:
        export = json.loads(arguments[shared[0]])
        del arguments[shared[0] - 1:shared[0] + 1]
        server = json.loads(arguments[arguments.index("--nbd-server") + 1])
        serve(mode, server["addr"]["path"], export["addr"]["path"])
    # The lock of the image goes with the real one.
    child = subprocess.Popen([program] + arguments, close_fds=False)
    signal.signal(signal.SIGINT, lambda *_: child.send_signal(signal.SIGINT))
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            pass


sys.exit(main())
