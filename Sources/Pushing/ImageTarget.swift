import Foundation
import Glibc
import ServerInterface

/// A qcow2 image that `qemu-nbd` writes for us.
final class ImageTarget: Sendable {
    /// Bytes of a cluster of images that are made here.
    static let clusterBytesDefault = 64 << 10

    /// Bytes of the image's clusters: only whole ones are written.
    let clusterBytes: Int
    private let order: PushOrder
    private let program: TargetProgram

    /// Makes the image in an open file, or examines the one that is there, and begins to serve it.
    init(_ order: PushOrder, in file: ProgramFile) throws(PushFailure) {
        self.order = order
        try Self.check(order)
        if order.keepsImage {
            clusterBytes = try Self.examine(order, in: file)
        } else {
            clusterBytes = Self.clusterBytesDefault
            try Self.create(order, in: file, options: [])
        }
        program = try Self.serve(order, file, readOnly: false)
    }

    /// Makes an empty image in place of what the file holds.
    static func create(
        _ order: PushOrder, in file: ProgramFile, options: [String]
    ) throws(PushFailure) {
        let all = ["cluster_size=\(clusterBytesDefault)"] + options
        try onceUnlocked(
            [
                "create", "-q", "-f", "qcow2", "-o", all.joined(separator: ","),
                ProgramFile.name, String(order.sizeBytes),
            ], on: file)
    }

    /// Throws what can be said without the image.
    static func check(_ order: PushOrder) throws(PushFailure) {
        for name in ["qemu-img", "qemu-nbd"] { try TargetProgram.check(name) }
        guard order.compresses else { return }
        guard !order.keepsImage else {
            throw PushFailure(
                "'\(order.path)': only a new image can be compressed: leave out --reuse-external")
        }
        guard order.sizeBytes % UInt64(clusterBytesDefault) == 0 else {
            throw PushFailure(
                "'\(order.path)': only a disk of whole clusters of \(clusterBytesDefault) bytes "
                    + "can be compressed, and this one has \(order.sizeBytes) bytes")
        }
    }

    /// The program of a worker that was killed ends a moment after it, and has the image until
    /// then.
    private static let lockMilliseconds = 5_000
    private static let lockLookMilliseconds = 50

    /// Runs `qemu-img` on a file; returns what it has printed.
    @discardableResult
    static func onceUnlocked(
        _ arguments: [String], on file: ProgramFile
    ) throws(PushFailure) -> String {
        var waited = 0
        while true {
            do throws(PushFailure) {
                return try TargetProgram.run("qemu-img", arguments, on: file)
            } catch {
                guard error.text.contains("Failed to get"), waited < lockMilliseconds else {
                    throw error
                }
                usleep(UInt32(lockLookMilliseconds) * 1000)
                waited += lockLookMilliseconds
            }
        }
    }

    /// Connects, as soon as the program listens.
    func connect() throws(PushFailure) -> NBDPeer { try Self.connect(order, program) }

    /// Waits for the program, which closes the image when the last connection is gone.
    func close() throws(PushFailure) { try program.wait() }

    /// Ends the program in the middle of it all.
    func kill() { program.kill() }

    /// Serves a closed image once more, to be read.
    static func reopen(
        _ order: PushOrder, in file: ProgramFile
    ) throws(PushFailure) -> (program: TargetProgram, connect: () throws(PushFailure) -> NBDPeer) {
        let program = try serve(order, file, readOnly: true)
        return (program, { () throws(PushFailure) in try connect(order, program) })
    }

    private static func connect(
        _ order: PushOrder, _ program: TargetProgram
    ) throws(PushFailure) -> NBDPeer {
        while true {
            if FileManager.default.fileExists(atPath: order.socketPath) {
                // It may be bound and not listen yet.
                if let peer = try? NBDPeer(socket: order.socketPath, what: "qemu-nbd") {
                    return peer
                }
            }
            // Who has lost patience with all of this is the server.
            try program.checkRuns()
            usleep(5_000)
        }
    }

    private static func serve(
        _ order: PushOrder, _ file: ProgramFile, readOnly: Bool
    ) throws(PushFailure) -> TargetProgram {
        // SAFETY: the string is passed for the time of the call.
        _ = unsafe unlink(order.socketPath)
        var arguments = [
            "--socket=\(order.socketPath)", "--shared=\(order.connections)", "--cache=writeback",
            "--aio=threads",
        ]
        arguments += readOnly ? ["--read-only"] : ["--discard=unmap", "--detect-zeroes=off"]
        arguments.append(try node(order, compresses: order.compresses && !readOnly))
        return try TargetProgram("qemu-nbd", arguments, on: file)
    }

    // What an image says of other files is not followed.
    private struct Node: Encodable {
        struct File: Encodable {
            let driver: String
            let filename: String
        }
        let file: File

        enum Keys: String, CodingKey { case driver, backing, file }
        func encode(to encoder: any Encoder) throws {
            var container = encoder.container(keyedBy: Keys.self)
            try container.encode("qcow2", forKey: .driver)
            try container.encodeNil(forKey: .backing)
            try container.encode(file, forKey: .file)
        }
    }

    private struct Compressing: Encodable {
        let driver = "compress"
        let file: Node
    }

    private static func node(
        _ order: PushOrder, compresses: Bool
    ) throws(PushFailure) -> String {
        let node = Node(
            file: Node.File(
                driver: order.kind == .block ? "host_device" : "file",
                filename: ProgramFile.name))
        do {
            let encoder = JSONEncoder()
            let data =
                try compresses
                ? encoder.encode(Compressing(file: node)) : encoder.encode(node)
            return "json:" + String(decoding: data, as: UTF8.self)
        } catch {
            throw PushFailure("'\(order.path)': \(error)")
        }
    }

    private struct Facts: Decodable {
        let virtualSize: UInt64
        let clusterSize: Int
        let formatSpecific: Specific?
        struct Specific: Decodable { let data: Values }
        struct Values: Decodable {
            let dataFile: String?
            enum CodingKeys: String, CodingKey { case dataFile = "data-file" }
        }
        enum CodingKeys: String, CodingKey {
            case virtualSize = "virtual-size"
            case clusterSize = "cluster-size"
            case formatSpecific = "format-specific"
        }
    }

    // The image is another's: it must be of the disk's size, and lie in one file.
    private static func examine(
        _ order: PushOrder, in file: ProgramFile
    ) throws(PushFailure) -> Int {
        let said = try onceUnlocked(
            ["info", "--output=json", "-f", "qcow2", ProgramFile.name], on: file)
        let facts: Facts
        do {
            facts = try JSONDecoder().decode(Facts.self, from: Data(said.utf8))
        } catch {
            throw PushFailure("'\(order.path)': qemu-img info says what cannot be read: \(error)")
        }
        guard facts.virtualSize == order.sizeBytes else {
            throw PushFailure(
                "image '\(order.path)' is made for \(facts.virtualSize) bytes, and the disk has "
                    + "\(order.sizeBytes)")
        }
        guard facts.formatSpecific?.data.dataFile == nil else {
            throw PushFailure("image '\(order.path)' keeps its data in another file")
        }
        let cluster = facts.clusterSize
        guard cluster >= 512, cluster <= 2 << 20, cluster & (cluster - 1) == 0 else {
            throw PushFailure("image '\(order.path)' has clusters of \(cluster) bytes")
        }
        return cluster
    }
}
