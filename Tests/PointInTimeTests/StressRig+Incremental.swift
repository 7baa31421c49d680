import TestSupport

/// A consumer that reads nothing but what an incremental job calls dirty.
extension StressRig {
    /// The old image with everything that the bitmap calls dirty replaced from the new job.
    func apply(
        _ job: BegunJob, _ target: String, to old: [UInt8]
    ) throws -> (image: [UInt8], dirtyBytes: Int) {
        let export = try job.export(target)
        guard let bitmap = export.bitmap else { throw TestFailure("\(target) has no bitmap") }
        let context = "qemu:dirty-bitmap:" + bitmap
        let client = try NBDClient(export.uri, .contexts(context))
        var image = old
        var dirtyBytes = 0
        for extent in try client.map(context) where extent.isDirty {
            dirtyBytes += extent.count
            for offset in stride(from: extent.offset, to: extent.end, by: 4 << 20) {
                let count = min(4 << 20, extent.end - offset)
                let bytes = try client.read(offset, count)
                Bytes.copy(bytes, at: 0, to: &image, at: offset, count: count)
            }
        }
        return (image, dirtyBytes)
    }

    /// A full backup and an incremental one from its checkpoint, of disks that are busy throughout;
    /// each must be the disks at one instant.
    func fullAndIncremental() throws {
        try writer.run(seconds: 0.3)
        let (full, window) = try begin(tag: "c0", checkpoint: "c0")
        try writer.run(seconds: 0.2)
        var images = try verify(full, window, name: "full")
        try end(full)
        try writer.run(seconds: 0.3)
        let (job, next) = try begin(tag: "c1", checkpoint: "c1", incremental: "c0")
        try writer.run(seconds: 0.2)
        for (index, target) in Self.targets.enumerated() {
            images[index] = try apply(job, target, to: images[index]).image
            try next.verify(disk: index, image: images[index], name: "c1 \(target), seed \(seed)")
        }
        try next.verifyOneInstant()
        try end(job)
        try finish()
    }

    /// Brings all images to a job's instant; fails unless they then are the job's own full pull.
    ///
    /// Returns the dirty bytes of all disks.
    @discardableResult
    func follow(
        _ job: BegunJob, _ window: InstantWindow, name: String, images: inout [[UInt8]]
    ) throws -> Int {
        var dirtyBytes = 0
        for (index, target) in Self.targets.enumerated() {
            let label = "\(name) \(target), seed \(seed)"
            let result = try apply(job, target, to: images[index])
            let pulled = try pullWithNBDCopy(job, target)
            guard pulled.count == result.image.count else {
                throw TestFailure("\(label): the pull has \(pulled.count) bytes")
            }
            if let place = Bytes.firstDifference(
                result.image, at: 0, pulled, at: 0, count: pulled.count)
            {
                throw TestFailure("\(label): the chain misses the change at \(place)")
            }
            try window.verify(disk: index, image: result.image, name: label)
            images[index] = result.image
            dirtyBytes += result.dirtyBytes
        }
        try window.verifyOneInstant()
        return dirtyBytes
    }

    /// The names of the domain's checkpoints, oldest first.
    func checkpointNames() throws -> [String] {
        try server.cli(["checkpoint-list", "vm1", "--name"]).output()
            .split(separator: "\n").map(String.init).filter { !$0.isEmpty }
    }

    /// Deletes a checkpoint while the disks are busy.
    func deleteCheckpoint(_ name: String) throws {
        let command = try server.startCLI(["checkpoint-delete", "vm1", name])
        try writer.run(beside: command).output()
    }
}
