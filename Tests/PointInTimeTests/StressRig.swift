import Foundation
import TestSupport
import VhostFrontEnd

/// Two live disks under a stress writer.
final class StressRig {
    static let targets = ["vda", "vdb"]

    let directory: TemporaryDirectory
    let server: ServerUnderTest
    private(set) var writer: StressWriter
    let paths: [String]
    private let source: Source
    private let cluster: CephCluster?
    let seed: UInt64
    /// How the guest reaches its disks.
    let guest: GuestKind
    private let loops: [LoopDevice]
    /// Of a rig over upstreams.
    let upstreams: [UpstreamServer]
    private let plan: StressPlan
    private var vhostFolder: String { directory.file("vhost") }

    /// Where the disks' bytes are.
    enum Source: String, CaseIterable, Sendable {
        case bufferedFile
        case directFile
        case blockDevice
        case upstream
        /// A qcow2 image that builds on a raw one.
        case overlay
        /// Images of a Ceph cluster.
        case rbd
    }

    init(
        _ source: Source = .bufferedFile, guest: GuestKind = .nbd, mebibytes: Int = 32,
        options given: [String] = [], largestBytes: Int = 4 << 20, inFlight: Int = 32,
        withFileSystem: Bool = false, upstream: UpstreamServer.Program = .nbdkit([]),
        discards: Bool = true
    ) throws {
        seed = RunSettings.seed
        self.guest = guest
        print("seed \(seed), source \(source.rawValue), guest \(guest.rawValue)")
        directory = try TemporaryDirectory()
        var loops: [LoopDevice] = []
        var upstreams: [UpstreamServer] = []
        var disks: [DiskDescription] = []
        var contents: [[UInt8]] = []
        var cluster: CephCluster?
        for (index, target) in Self.targets.enumerated() {
            let path = directory.file(target + ".img")
            var content = try Images.mixed(
                path, bytes: mebibytes << 20, seed: seed &+ UInt64(index))
            if withFileSystem {
                try Command.run("mkfs.ext4", ["-q", "-F", path]).output()
                content = try Bytes.ofFile(path)
            }
            contents.append(content)
            var disk = DiskDescription(target, path)
            disk.discards = discards
            switch source {
            case .bufferedFile: break
            case .directFile: disk.cache = .direct
            case .blockDevice:
                loops.append(try disk.becomeDevice())
            case .overlay: try disk.becomeOverlay()
            case .rbd:
                let ceph = try cluster ?? CephCluster()
                cluster = ceph
                try ceph.add(target, from: path)
                disk.rbd = (target, ceph.configuration)
            case .upstream:
                let server = try UpstreamServer(upstream, over: path)
                disk.upstreamSocket = server.socket
                upstreams.append(server)
            }
            disks.append(disk)
        }
        self.loops = loops
        self.upstreams = upstreams
        paths = disks.map(\.path)
        self.source = source
        self.cluster = cluster
        let options =
            guest == .vhost ? given + ["--vhost-dir", directory.file("vhost")] : given
        server = try ServerUnderTest([DomainDescription("vm1", disks)], options: options)
        var plan = StressPlan(seed: seed)
        plan.largestBytes = largestBytes
        plan.inFlight = inFlight
        self.plan = plan
        writer = try StressWriter(
            disks: Self.connect(server, guest, directory.file("vhost")), contents: contents,
            plan: plan)
    }

    /// Connects the guest to its disks.
    private static func connect(
        _ server: ServerUnderTest, _ guest: GuestKind, _ folder: String
    ) throws -> [any GuestDisk] {
        try targets.map { target throws in
            try server.guestDisk("vm1", target, guest, vhostFolder: folder)
        }
    }

    /// Makes an image for each disk's scratch, of a rig over a Ceph cluster.
    func makeScratchImages(mebibytes: Int) throws {
        for target in Self.targets {
            try cluster?.create("scratch-" + target, mebibytes: mebibytes)
        }
    }

    /// The image of one disk's scratch.
    func scratchImage(_ index: Int) throws -> (image: String, configuration: String) {
        guard let cluster else { throw TestFailure("the rig has no cluster") }
        return ("scratch-" + Self.targets[index], cluster.configuration)
    }

    /// Begins a job while the disks are busy, and returns it with the window its instant lies in.
    func begin(_ backup: BackupDescription, checkpoint: String? = nil) throws -> (
        job: BegunJob, window: InstantWindow
    ) {
        let arguments = try server.beginArguments("vm1", backup, checkpoint: checkpoint)
        let window = writer.openWindow()
        let command = try server.startCLI(arguments + ["--json"])
        let result = try writer.run(beside: command, timeout: 60)
        try writer.closeWindow(window)
        return (try BegunJob(json: try result.output()), window)
    }

    func begin(tag: String, checkpoint: String? = nil, incremental: String? = nil) throws -> (
        job: BegunJob, window: InstantWindow
    ) {
        var backup = server.standardBackup(disks: Self.targets, tag: tag)
        backup.incremental = incremental
        return try begin(backup, checkpoint: checkpoint)
    }

    /// Pulls one disk with nbdcopy while the disks are busy.
    func pullWithNBDCopy(_ job: BegunJob, _ target: String) throws -> [UInt8] {
        let copy = directory.file("nbdcopy-\(job.id)-\(target)")
        defer { Files.remove(copy) }
        let command = try Command("nbdcopy", [try job.uri(target), copy])
        try writer.run(beside: command).output()
        return try Bytes.ofFile(copy)
    }

    /// Pulls one disk with qemu-img while the disks are busy.
    func pullWithQemuImg(_ job: BegunJob, _ target: String) throws -> [UInt8] {
        let copy = directory.file("qemu-\(job.id)-\(target)")
        defer { Files.remove(copy) }
        let command = try Command(
            "qemu-img",
            ["convert", "-f", "raw", "-O", "raw", "-W", try job.uri(target), copy])
        try writer.run(beside: command).output()
        return try Bytes.ofFile(copy)
    }

    /// Pulls every disk of a job twice, by two programs, and judges both.
    func verify(_ job: BegunJob, _ window: InstantWindow, name: String) throws -> [[UInt8]] {
        var images: [[UInt8]] = []
        for (index, target) in Self.targets.enumerated() {
            let first = try pullWithNBDCopy(job, target)
            let second = try pullWithQemuImg(job, target)
            if let place = Bytes.firstDifference(first, at: 0, second, at: 0, count: first.count) {
                throw TestFailure("\(name) \(target): two pulls differ at \(place), seed \(seed)")
            }
            try window.verify(disk: index, image: first, name: "\(name) \(target), seed \(seed)")
            images.append(first)
        }
        try window.verifyOneInstant()
        return images
    }

    func end(_ job: BegunJob) throws {
        let command = try server.startCLI(["backup-end", "vm1", "--job", job.id])
        try writer.run(beside: command).output()
    }

    /// Starts the server again after its end, and a writer that goes on from what the disks hold.
    ///
    /// What was in flight when the server was killed may or may not be on the disks.
    func restart() throws {
        try server.start()
        var next = plan
        next.seed = plan.seed &+ UInt64(writer.finishedCount) &+ 1
        let contents = try paths.indices.map { index throws in
            guard source == .overlay || source == .rbd else {
                return try Bytes.ofDisk(paths[index])
            }
            // What its program has not written down yet is the disk's, too.
            let client = try NBDClient(server.liveURI("vm1", Self.targets[index]))
            defer { try? client.disconnect() }
            return try client.read(0, client.sizeBytes)
        }
        writer = try StressWriter(disks: connectAgain(), contents: contents, plan: next)
    }

    /// Connects the guest to a server that was started again.
    ///
    /// An upstream may have ended with the server before: nbdkit 1.32 does so now and then, by an
    /// assertion of its own, when a client vanishes in the middle of its answer.
    private func connectAgain() throws -> [any GuestDisk] {
        let end = Date(timeIntervalSinceNow: 20)
        while true {
            for upstream in upstreams { try upstream.startIfEnded() }
            do {
                return try Self.connect(server, guest, vhostFolder)
            } catch {
                guard !upstreams.isEmpty, Date() < end else {
                    throw TestFailure(
                        ([String(describing: error), server.stderr] + upstreams.map(\.summary))
                            .joined(separator: "\n"))
                }
                Thread.sleep(forTimeInterval: 0.1)
            }
        }
    }

    /// Starts the server again after its end, under a guest that never hears of it: its requests in
    /// flight go on, and its oracle stays exact.
    func restartBeneath() throws {
        try server.start()
        for disk in writer.disks {
            guard let disk = disk as? VhostDisk else {
                throw TestFailure("a guest over NBD cannot go on")
            }
            try disk.reconnect()
        }
    }

    /// The bytes of an image that nobody has open, which must be in order.
    private func overlayContent(_ path: String) throws -> [UInt8] {
        try Command.run("qemu-img", ["check", "-q", path]).output()
        let copy = path + ".raw"
        defer { Files.remove(copy) }
        try Command.run("qemu-img", ["convert", "-O", "raw", path, copy]).output()
        return try Bytes.ofFile(copy)
    }

    /// Stops everything; fails unless the disks hold what the writer put there.
    func finish() throws {
        try writer.drain()
        try server.stop()
        for (index, path) in paths.enumerated() {
            let file =
                switch source {
                case .overlay: try overlayContent(path)
                case .rbd: try cluster?.content(Self.targets[index]) ?? []
                case .blockDevice, .bufferedFile, .directFile, .upstream: try Bytes.ofDisk(path)
                }
            let oracle = writer.oracle[index]
            guard file.count == oracle.count else { throw TestFailure("\(path) changed its size") }
            if let place = Bytes.firstDifference(file, at: 0, oracle, at: 0, count: file.count) {
                throw TestFailure("\(path): the live disk is wrong at \(place), seed \(seed)")
            }
        }
    }
}
