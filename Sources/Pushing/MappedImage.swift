import Foundation
import ServerInterface

/// An empty qcow2 image in which every byte of the disk has its place in the file from the start.
///
/// `qemu-img` makes it and says where the places are. What is written there is in the image: no
/// program has to take the data. Places that are never written are holes and read as zeros.
struct MappedImage: Sendable {
    /// A part of the disk that lies in the file in one piece.
    private struct Run: Decodable {
        let start: UInt64
        let length: UInt64
        let offset: UInt64
    }

    /// In the disk's order, without gaps.
    private let runs: [Run]

    /// Whether a target can be written like this; the image has room for the whole disk then, so
    /// that the file's size is at least the disk's.
    static func suits(_ order: PushOrder) -> Bool {
        order.isDense && order.isNew && order.format == .qcow2 && !order.compresses
    }

    /// Makes the image in an open file of its own.
    init(_ order: PushOrder, in file: ProgramFile) throws(PushFailure) {
        try ImageTarget.check(order)
        try ImageTarget.create(order, in: file, options: ["preallocation=metadata"])
        let said = try ImageTarget.onceUnlocked(
            ["map", "--output=json", "-f", "qcow2", ProgramFile.name], on: file)
        do {
            runs = try JSONDecoder().decode([Run].self, from: Data(said.utf8))
        } catch {
            throw PushFailure("'\(file.path)': qemu-img map says what cannot be read: \(error)")
        }
        guard Self.isWhole(runs, order.sizeBytes) else {
            throw PushFailure("'\(file.path)': qemu-img map leaves parts of the image out")
        }
    }

    // All of the disk, in order, at places of whole clusters that no two parts share.
    private static func isWhole(_ runs: [Run], _ sizeBytes: UInt64) -> Bool {
        let cluster = UInt64(ImageTarget.clusterBytesDefault)
        var end: UInt64 = 0
        for run in runs {
            guard run.start == end, run.length > 0, run.length <= sizeBytes - end,
                run.start % cluster == 0, run.offset % cluster == 0, run.offset >= cluster,
                run.offset <= UInt64(Int64.max) - run.length
            else { return false }
            end += run.length
        }
        var taken: UInt64 = 0
        for run in runs.sorted(by: { $0.offset < $1.offset }) {
            guard run.offset >= taken else { return false }
            taken = run.offset + run.length
        }
        return end == sizeBytes
    }

    /// Calls `body` with the places of a range of the disk: how far into the range a part begins,
    /// its bytes, and where it lies in the file.
    func each(
        at offset: UInt64, count: Int,
        _ body: (_ done: Int, _ count: Int, _ position: UInt64) throws(PushFailure) -> Void
    ) throws(PushFailure) {
        var index = first(holding: offset)
        var done = 0
        while done < count, index < runs.count {
            let run = runs[index]
            let within = offset + UInt64(done) - run.start
            let part = Int(min(run.length - within, UInt64(count - done)))
            try body(done, part, run.offset + within)
            done += part
            index += 1
        }
        guard done == count else {
            throw PushFailure("bytes \(offset) to \(offset + UInt64(count)) are past the image")
        }
    }

    private func first(holding offset: UInt64) -> Int {
        var (low, high) = (0, runs.count)
        while low < high {
            let middle = (low + high) / 2
            if runs[middle].start + runs[middle].length > offset {
                high = middle
            } else {
                low = middle + 1
            }
        }
        return low
    }
}
