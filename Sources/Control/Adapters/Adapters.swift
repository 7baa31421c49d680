import Foundation
import Glibc
package import ServerInterface
import Synchronization

/// Starts adapters by a process that keeps them; that one is started with the first.
package final class Adapters: AdapterStarting {
    private struct Content {
        var keeper: KeeperProcess?
        var runs: [UInt64: AdapterRun] = [:]
        var lastID: UInt64 = 0
        /// Which programs can share memory, by their paths.
        var sharing: [String: Bool] = [:]
    }

    /// The command by which the program becomes the keeper.
    private let command: String
    /// Where sockets and locks lie: nobody else may look into it.
    private let directory: String
    /// Memory that outlives the process.
    private let memoryDirectory: String
    private let content = Mutex(Content())

    /// Longest path of a socket, in bytes.
    private static let socketPathBytesMax = 107

    /// `directory`: where sockets and locks lie, made when it is needed.
    ///
    /// `memoryDirectory`: one in memory that outlives the process.
    package init(command: String, directory: String, memoryDirectory: String) {
        self.command = command
        self.directory = directory
        self.memoryDirectory = memoryDirectory
    }

    package func start(
        _ image: ImageConfiguration, for disk: DiskConfiguration, milliseconds: Int32
    ) throws(AdapterFault) -> any Adapter {
        let look = try ImageLook(image)
        let program = try Self.find("qemu-storage-daemon", for: image)
        try makeDirectory()
        // Those who only read have the image beside each other.
        let reader = disk.readOnly ? "-" + String(UInt32.random(in: 0 ... .max), radix: 16) : ""
        let name = directory + "/" + Self.name(of: disk, image) + reader
        guard name.utf8.count + ".sock".utf8.count <= Self.socketPathBytesMax else {
            throw AdapterFault(
                "the path of its socket, '\(name).sock', is too long: choose a shorter run"
                    + " directory")
        }
        let socket = name + ".sock"
        let repair =
            disk.readOnly
            ? []
            : (try? Self.find("qemu-img", for: image)).flatMap {
                BlockGraph.repair(image, by: $0)
            } ?? []
        let arguments = BlockGraph.arguments(
            image, for: disk, socket: socket, readyFile: name + ".ready")
        let sharedSocket = sharesMemory(program) ? name + ".mem" : ""
        let address = try Self.address(socket)
        let unflushedFile =
            disk.readOnly
            ? ""
            : memoryDirectory + "/unflushed-" + String(UInt64.random(in: 0 ... .max), radix: 16)
        let watch = RBDWatch(image, for: disk, file: name + ".watch")
        let run = content.withLock { content in
            content.lastID += 1
            let order = AdapterOrder(
                id: content.lastID, program: program, arguments: arguments,
                sharingArguments: sharedSocket.isEmpty
                    ? [] : BlockGraph.sharing(for: disk, socket: sharedSocket),
                socket: socket, sharedSocket: sharedSocket,
                readyFile: name + ".ready", lockFile: name + ".lock",
                unflushedFile: unflushedFile, repair: repair)
            let run = AdapterRun(order, of: self, address, image, look, watch)
            content.runs[order.id] = run
            return run
        }
        do throws(AdapterFault) {
            try run.ensureRuns(milliseconds: milliseconds)
        } catch {
            run.stop()
            throw AdapterFault(Self.explained(error.detail))
        }
        return run
    }

    private static func address(_ socket: String) throws(AdapterFault) -> UpstreamAddress {
        do throws(UpstreamAddressFault) {
            return try UpstreamAddress(place: .unix(path: socket), name: BlockGraph.exportName)
        } catch {
            throw AdapterFault(error.detail)
        }
    }

    /// The same for the same image in every process, so that one waits for the other's program; but
    /// not for images of one name in two clusters.
    static func name(of disk: DiskConfiguration, _ image: ImageConfiguration) -> String {
        let monitors = image.layers.first?.place.monitors.sorted() ?? []
        let words = [disk.path] + monitors
        let digits = String(StableHash(words.joined(separator: " ")).value, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }

    private func makeDirectory() throws(AdapterFault) {
        do {
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true,
                attributes: [.posixPermissions: 0o700])
        } catch {
            throw AdapterFault("its directory '\(directory)' cannot be made: \(error)")
        }
        guard let facts = SystemCalls.trustFacts(of: directory),
            facts.owner == SystemCalls.userID, facts.mode & 0o077 == 0
        else {
            throw AdapterFault(
                "its directory '\(directory)' is open to other users, who could put a socket of"
                    + " theirs there: remove it, and keep its parent private")
        }
    }

    /// Whether a program can share memory; asked before, as it opens the image for writing before it
    /// refuses to, and leaves it like that.
    private func sharesMemory(_ program: String) -> Bool {
        if let known = content.withLock({ $0.sharing[program] }) { return known }
        // Of one that does not answer it is believed: it is found out when it refuses.
        guard
            let help = try? ChildProcess.output(
                of: program, ["--help"], milliseconds: Self.helpMilliseconds)
        else { return true }
        let shares = String(decoding: help, as: UTF8.self).contains(BlockGraph.sharingType)
        content.withLock { $0.sharing[program] = shares }
        return shares
    }

    private static let helpMilliseconds = 5_000

    // MARK: Looking before

    private static func find(
        _ program: String, for image: ImageConfiguration
    ) throws(AdapterFault) -> String {
        if let path = path(of: program) { return path }
        throw AdapterFault(
            "the program '\(program)' is not installed, which opens it: install the package"
                + " 'qemu-system-common'")
    }

    /// Where a program is installed.
    static func path(of program: String) -> String? {
        let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
        for directory in path.split(separator: ":") where directory.hasPrefix("/") {
            let candidate = "\(directory)/\(program)"
            if FileManager.default.isExecutableFile(atPath: candidate) { return candidate }
        }
        return nil
    }

    private static func explained(_ detail: String) -> String {
        let needsExtra = ["rbd", "iscsi", "gluster"].contains {
            detail.contains("Unknown driver '\($0)'")
                || detail.contains("Invalid parameter '\($0)'")
                || detail.contains("does not accept value '\($0)'")
        }
        return needsExtra ? detail + " (install the package 'qemu-block-extra')" : detail
    }

    // MARK: Telling and hearing

    func tell(_ command: KeeperCommand) throws(AdapterFault) {
        let word = self.command
        let keeper: Result<KeeperProcess, SystemCalls.Failure> = content.withLock { content in
            if let keeper = content.keeper { return .success(keeper) }
            do throws(SystemCalls.Failure) {
                let keeper = try KeeperProcess(word) { [weak self] report in self?.hear(report) }
                content.keeper = keeper
                return .success(keeper)
            } catch {
                return .failure(error)
            }
        }
        switch keeper {
        case .success(let keeper): keeper.tell(command)
        case .failure(let failure):
            throw AdapterFault("no program can be started: \(failure.text)")
        }
    }

    private func hear(_ report: KeeperReport?) {
        switch report {
        case .waits(let id): content.withLock { $0.runs[id] }?.hasToWait()
        case .ready(let id, let mayHaveLost):
            content.withLock { $0.runs[id] }?.becameReady(mayHaveLost: mayHaveLost)
        case .ended(let id, let text): content.withLock { $0.runs[id] }?.hasEnded(text)
        case nil:
            let runs = content.withLock { content in
                content.keeper = nil
                return Array(content.runs.values)
            }
            for run in runs { run.hasEnded("the process that kept it has ended") }
        }
    }

    func forget(_ id: UInt64) { content.withLock { $0.runs[id] = nil } }
}
