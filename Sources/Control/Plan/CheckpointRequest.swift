/// A checkpoint as a client asks for it: a valid `<domaincheckpoint>`.
package struct CheckpointRequest: Sendable, Hashable {
    /// What the checkpoint does with one disk.
    package struct Disk: Sendable, Hashable {
        /// Target of the disk, or the absolute path of its source.
        package let name: String
        /// False for `checkpoint='no'`.
        package let participates: Bool
        /// Name of the bitmap when one was given.
        package let bitmap: String?
    }

    /// Name of the checkpoint; nil leaves the choice to the server.
    package let name: String?
    package let description: String?
    /// Seconds since 1970; only a redefinition may set it.
    package let creationTime: UInt64?
    /// Name of the parent; only a redefinition may set it.
    package let parent: String?
    /// Disks listed, nil when there was no list and every disk takes part.
    package let disks: [Disk]?

    /// Reads a `<domaincheckpoint>` document.
    ///
    /// - Throws: 35 or 92 for XML that is none or not of this form, 27 for a time out of range, 67
    ///   for a disk listed twice or a bitmap that is not named as the checkpoint.
    package static func parse(_ xml: String) throws(ControlError) -> CheckpointRequest {
        let root = try XMLDocument.parse(xml, schema: .checkpoint)
        let name = root.child("name")?.text
        var creationTime: UInt64?
        if let text = root.child("creationTime")?.text {
            guard let seconds = UInt64(text) else {
                throw .xmlError("creationTime '\(text)' is out of range")
            }
            creationTime = seconds
        }
        let disks = root.child("disks")?.all("disk").map { disk in
            Disk(
                name: disk.attribute("name") ?? "",
                participates: disk.attribute("checkpoint") != "no",
                bitmap: disk.attribute("bitmap"))
        }
        var seen: Set<String> = []
        for disk in disks ?? [] {
            guard seen.insert(disk.name).inserted else { throw .diskListedTwice(disk.name) }
            if let name, let bitmap = disk.bitmap, bitmap != name {
                throw .unsupportedConfiguration(
                    "bitmap for disk '\(disk.name)' must match checkpoint name '\(name)'")
            }
        }
        return CheckpointRequest(
            name: name, description: root.child("description")?.text, creationTime: creationTime,
            parent: root.child("parent")?.child("name")?.text, disks: disks)
    }
}
