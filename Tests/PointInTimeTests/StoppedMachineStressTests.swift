import Foundation
import TestSupport
import Testing

extension PointInTimeSuite {
    /// Backups of machines that are started and stopped again while clients read.
    @Suite struct StoppedMachineStressTests {
        @Test(
            "P1: pulls are the instant's while guests come, write and go",
            arguments: GuestKind.allCases)
        func comingAndGoing(guest: GuestKind) throws {
            let rig = try ComingAndGoing(guest, seed: RunSettings.seed)
            try rig.run(seconds: RunSettings.stressSeconds(default: 5))
            try rig.finish()
        }
    }
}

/// Jobs over a disk whose guests come for moments only.
private final class ComingAndGoing {
    private static let target = "vda"
    private static let mebibytes = 32

    private let directory: TemporaryDirectory
    private let server: ServerUnderTest
    private let path: String
    private let seed: UInt64
    private let kind: GuestKind
    private var generator: SeededGenerator
    private var content: [UInt8]
    private var guestCount = 0

    init(_ kind: GuestKind, seed: UInt64) throws {
        print("seed \(seed), guests over \(kind.rawValue)")
        self.kind = kind
        self.seed = seed
        generator = SeededGenerator(seed: seed)
        directory = try TemporaryDirectory()
        path = directory.file("vda.img")
        content = try Images.random(path, bytes: Self.mebibytes << 20, seed: seed)
        server = try ServerUnderTest(
            [DomainDescription("vm1", [DiskDescription(Self.target, path)])],
            options: kind == .vhost ? ["--vhost-dir", directory.file("vhost")] : [])
    }

    func run(seconds: Double) throws {
        let end = ContinuousClock.now + .seconds(seconds)
        var rounds = 0
        repeat {
            try round(rounds)
            rounds += 1
        } while ContinuousClock.now < end
        print("\(rounds) jobs, \(guestCount) guests")
    }

    /// One job: readers of two kinds, and guests that come and go beside them.
    private func round(_ number: Int) throws {
        let base = directory.file("base-\(number)")
        try Data(content).write(to: URL(fileURLWithPath: base))
        defer { Files.remove(base) }
        let job = try server.begin("vm1", disks: [Self.target], tag: "round\(number)")
        let export = try job.export(Self.target)
        let socket = directory(ofSocketIn: export.uri)
        let readers = try (0..<3).map { index throws in
            try Command(
                "/usr/bin/python3",
                [
                    "-c", Self.reader, socket, export.name, base,
                    "\(seed &+ UInt64(number * 16 + index))",
                ])
        }
        let copy = directory.file("copy-\(number)")
        defer { Files.remove(copy) }
        var copying = try Command("nbdcopy", [export.uri, copy])
        while readers.contains(where: \.isRunning) {
            Thread.sleep(forTimeInterval: Double(generator.below(250)) / 1000)
            try guest()
            if !copying.isRunning {
                try verify(copying, copy, base)
                copying = try Command("nbdcopy", [export.uri, copy])
            }
        }
        for reader in readers {
            let result = try reader.result()
            guard result.succeeded else { throw TestFailure("seed \(seed): \(result)") }
        }
        try verify(copying, copy, base)
        try server.end("vm1", job)
    }

    private func directory(ofSocketIn uri: String) -> String {
        String(uri.split(separator: "=").last ?? "")
    }

    private func verify(_ copying: Command, _ copy: String, _ base: String) throws {
        try copying.result().output()
        try Images.expectEqual(base, copy)
    }

    /// A guest comes, overwrites what it can in some milliseconds, and goes.
    private func guest() throws {
        guestCount += 1
        var plan = StressPlan(seed: generator.next())
        plan.largestBytes = 1 << 18
        let writer = try StressWriter(
            disks: [
                server.guestDisk(
                    "vm1", Self.target, kind, vhostFolder: directory.file("vhost"))
            ], contents: [content], plan: plan)
        try writer.run(seconds: Double(5 + generator.below(40)) / 1000)
        try writer.drain()
        content = writer.oracle[0]
    }

    /// Fails unless the disk holds what the guests put there.
    func finish() throws {
        try server.stop()
        let found = try Bytes.ofFile(path)
        if let place = Bytes.firstDifference(found, at: 0, content, at: 0, count: content.count) {
            throw TestFailure("the live disk is wrong at \(place), seed \(seed)")
        }
    }

    /// Reads at random for two seconds, many requests ahead and with pauses, so that its socket is
    /// full most of the time; compares every byte.
    private static let reader = """
        import random, socket, struct, sys, time
        path, name, base, seed = sys.argv[1], sys.argv[2].encode(), sys.argv[3], int(sys.argv[4])
        pick = random.Random(seed)
        want = open(base, "rb").read()
        s = socket.socket(socket.AF_UNIX); s.connect(path)
        def need(n):
            data = bytearray(n); view = memoryview(data); got = 0
            while got < n:
                more = s.recv_into(view[got:])
                if not more: sys.exit("hung up on")
                got += more
            return data
        need(18); s.sendall(struct.pack(">I", 3))
        s.sendall(b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name); need(10)
        asked = []; number = 0; end = time.time() + 2; count = 0
        while asked or time.time() < end:
            while len(asked) < 8 and time.time() < end:
                length = pick.choice([65536, 131072, 262144, 524288])
                offset = pick.randrange(0, len(want) - length + 1, 4096)
                number += 1
                s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, number, offset, length))
                asked.append((number, offset, length))
            if pick.random() < 0.3: time.sleep(pick.choice([0.001, 0.005, 0.02, 0.1]))
            magic, error, cookie = struct.unpack(">IIQ", need(16))
            index = [n for n, _, _ in asked].index(cookie)
            _, offset, length = asked.pop(index)
            if error: sys.exit("error %d at %d" % (error, offset))
            data = need(length)
            if data != want[offset:offset + length]:
                first = next(i for i in range(length) if data[i] != want[offset + i])
                sys.exit("WRONG at %d (%d + %d)" % (offset + first, offset, first))
            count += 1
        print("ok", count)
        """
}
