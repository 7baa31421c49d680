import Foundation
import TestSupport
import Testing

/// A machine with two disks, backed up and restored by virtnbdbackup as it is.
///
/// The machine is a stress writer that knows what the disks held at each moment. Its windows say
/// whether a restored image can be the disks at one instant of the tool's run, bit for bit; the
/// server is not asked.
final class BackupToolRig {
    static let targets = ["vda", "vdb"]

    /// Where the disks' bytes are.
    enum Source: String, CaseIterable, Sendable {
        case file
        case blockDevice
    }

    /// One backup that the tool made.
    struct Backup {
        let level: String
        /// The files that bring the disk to its instant, in order, by target.
        let files: [String: [String]]
        let window: InstantWindow
    }

    let directory: TemporaryDirectory
    let server: ServerUnderTest
    let client: LibvirtClient
    /// Nil while the machine is off.
    private(set) var writer: StressWriter?
    private(set) var backups: [Backup] = []
    private let paths: [String]
    private let loops: [LoopDevice]
    private var seed: UInt64 = 1
    private var folder: String { directory.file("backups") }

    /// `sizes` are those of the two disks, bytes.
    init(_ source: Source, sizes: [Int], client: LibvirtClient = .installed) throws {
        self.client = client
        directory = try TemporaryDirectory()
        var disks: [DiskDescription] = []
        var loops: [LoopDevice] = []
        for (index, target) in Self.targets.enumerated() {
            let path = directory.file(target + ".img")
            try Images.mixed(path, bytes: sizes[index], seed: UInt64(index + 1))
            var disk = DiskDescription(target, path)
            if source == .blockDevice {
                loops.append(try disk.becomeDevice())
            }
            disks.append(disk)
        }
        self.loops = loops
        paths = disks.map(\.path)
        server = try ServerUnderTest([DomainDescription("vm1", disks)])
        _ = try directory.directory("scratch")
    }

    /// Connects the machine, which goes on from what the disks hold.
    func startMachine() throws {
        seed += 1
        var plan = StressPlan(seed: seed)
        plan.inFlight = 4
        plan.largestBytes = 1 << 16
        let server = server
        writer = try StressWriter(
            uris: Self.targets.map { server.liveURI("vm1", $0) },
            contents: try paths.map { path throws in try Bytes.ofDisk(path) }, plan: plan)
    }

    /// Disconnects it when it has finished its commands.
    func stopMachine() throws {
        try writer?.drain()
        writer = nil
    }

    /// Ends the server as a power switch does, in the midst of writes, and starts it again.
    ///
    /// The machine starts anew: what was in flight may or may not be on the disks.
    func kill() throws {
        server.kill()
        writer = nil
        try server.start()
        // A device that the kernel still holds for the killed server is served a little later.
        for _ in 0..<100 {
            let isServed = Self.targets.allSatisfy {
                (try? NBDClient(server.liveURI("vm1", $0))) != nil
            }
            if isServed { return try startMachine() }
            Thread.sleep(forTimeInterval: 0.1)
        }
        throw TestFailure("the disks are not served again: \(server.stderr)")
    }

    /// Changes a part of the disks.
    func work(seconds: Double = 0.05) throws {
        let end = ContinuousClock.now + .seconds(seconds)
        try running().run(timeout: 60) {
            Thread.sleep(forTimeInterval: 0.001)
            return ContinuousClock.now >= end
        }
    }

    private func running() throws -> StressWriter {
        guard let writer else { throw TestFailure("the machine is off") }
        return writer
    }

    // MARK: Backups

    private func tool(_ arguments: [String]) throws -> Command {
        try Command(
            try client.backupTool("virtnbdbackup"),
            ["-U", server.libvirtURI, "-d", "vm1", "-o", folder, "-n"] + arguments
                + ["--scratchdir", directory.file("scratch")],
            environment: LibvirtClient.environment)
    }

    /// Runs the tool beside the machine, if that is on, and remembers what it wrote.
    ///
    /// `name` is what the tool calls the level in the names of its files.
    func backup(_ level: String, _ options: [String] = []) throws {
        let before = Set(Files.listing(folder))
        let machine = writer
        if machine == nil { try startMachine() }
        let window = try running().openWindow()
        // A machine that is off does not even have a connection.
        if machine == nil { writer = nil }
        let command = try tool(["-l", level] + options)
        if let machine {
            try machine.run(timeout: 60) {
                Thread.sleep(forTimeInterval: 0.001)
                return !command.isRunning || command.stderr.contains("Waiting until NBD server")
            }
            try machine.closeWindow(window)
        }
        let result = try machine?.run(beside: command) ?? command.result(timeout: 120)
        try result.output()
        #expect(
            result.stderr.contains("Finished successfully")
                || result.stdout.contains("Finished successfully"), "\(result)")
        let new = Files.listing(folder).filter { $0.hasSuffix(".data") && !before.contains($0) }
        #expect(new.count == Self.targets.count, "\(level): \(new)")
        backups.append(
            Backup(level: level, files: try chains(level: level, new), window: window))
    }

    private func chains(level: String, _ new: [String]) throws -> [String: [String]] {
        var chains: [String: [String]] = [:]
        for target in Self.targets {
            guard let file = new.first(where: { $0.hasPrefix(target + ".") }) else {
                throw TestFailure("\(level): no file of \(target) in \(new)")
            }
            let base = backups.last { $0.level != "diff" }.flatMap { $0.files[target] } ?? []
            chains[target] = (level == "full" ? [] : base) + [file]
        }
        return chains
    }

    /// Bytes that a backup's own files take, both disks.
    func bytes(of backup: Backup) throws -> Int {
        try Self.targets.reduce(0) { sum, target in
            guard let last = backup.files[target]?.last else { return sum }
            return sum + (try Bytes.ofFile(folder + "/" + last).count)
        }
    }

    // MARK: Restores

    /// Restores every level of every disk, and fails unless each is the disk at its instant.
    func verifyAll() throws {
        for (number, backup) in backups.enumerated() {
            var commands: [(target: String, place: String, command: Command)] = []
            for target in Self.targets {
                let place = directory.file("restored-\(number)-\(target)")
                let sequence = (backup.files[target] ?? []).joined(separator: ",")
                commands.append(
                    (target, place, try restore(into: place, ["-s", sequence])))
            }
            for (index, item) in commands.enumerated() {
                try item.command.result(timeout: 120).output()
                let image = try raw(
                    item.place, item.target, size: try Bytes.ofDisk(paths[index]).count)
                try backup.window.verify(
                    disk: index, image: image, name: "\(number): \(backup.level) \(item.target)")
            }
            try backup.window.verifyOneInstant()
        }
    }

    /// Restores what the tool thinks is everything; fails unless the images are the last backup's.
    func verifyWhole() throws {
        guard let last = backups.last else { return }
        let place = directory.file("whole")
        try restore(into: place, []).result(timeout: 120).output()
        for (index, target) in Self.targets.enumerated() {
            let image = try raw(place, target, size: try Bytes.ofDisk(paths[index]).count)
            try last.window.verify(disk: index, image: image, name: "the whole of \(target)")
        }
        try last.window.verifyOneInstant()
    }

    private func restore(into place: String, _ options: [String]) throws -> Command {
        try Command(
            try client.backupTool("virtnbdrestore"),
            [
                "-U", server.libvirtURI, "-i", folder, "-o", place, "-n", "-f", place + ".sock",
                "-L", place + ".log",
            ] + options, environment: LibvirtClient.environment)
    }

    /// The bytes of a restored image, which is a qcow2 image of whole sectors.
    private func raw(_ place: String, _ target: String, size: Int) throws -> [UInt8] {
        for name in Files.listing(place) where !name.hasSuffix(".xml") {
            let path = place + "/" + name
            guard name == target || name.hasPrefix(target + ".") || name.contains(target) else {
                continue
            }
            let raw = path + ".raw"
            try Command.run(
                "qemu-img", ["convert", "-f", "qcow2", "-O", "raw", path, raw]
            ).output()
            let bytes = try Bytes.ofFile(raw)
            Files.remove(raw)
            guard bytes.count == (size + 511) / 512 * 512 else {
                throw TestFailure("\(path) has \(bytes.count) bytes, the disk \(size)")
            }
            guard Bytes.isZero(bytes, at: size, count: bytes.count - size) else {
                throw TestFailure("\(path): bytes behind the disk's end")
            }
            return Array(bytes[..<size])
        }
        throw TestFailure("nothing of \(target) in \(place): \(Files.listing(place))")
    }

    /// The domain XML that the tool saved with a backup.
    func savedXML() throws -> [String] {
        Files.listing(folder).filter { $0.hasPrefix("vmconfig.") }.map {
            Files.read(folder + "/" + $0)
        }
    }
}
