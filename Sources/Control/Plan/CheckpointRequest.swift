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
    /// The uuid of the `<domain>` given, as written.
    package let domainUUID: String?
    /// The `<domain>` given, as written.
    package let domainXML: String?
    /// Disks listed, nil when there was no list and every disk takes part.
    package let disks: [Disk]?

    /// Reads a `<domaincheckpoint>` document.
    ///
    /// - Throws: 35 for malformed XML, 92 where it does not match the schema, 27 for a time out of
    ///   range, 67 for a disk listed twice.
    package static func parse(_ xml: String) throws(ControlError) -> CheckpointRequest {
        let root = try XMLDocument.parse(xml, schema: .checkpoint)
        let name = root.child("name")?.text
        var creationTime: UInt64?
        if let text = root.child("creationTime")?.text {
            guard let seconds = UInt64(text), seconds <= CheckpointMetadata.creationTimeMax else {
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
        }
        return CheckpointRequest(
            name: name, description: root.child("description")?.text, creationTime: creationTime,
            parent: root.child("parent")?.child("name")?.text,
            domainUUID: root.child("domain")?.child("uuid")?.text,
            domainXML: root.child("domain").flatMap { _ in XMLText.child("domain", of: xml) },
            disks: disks)
    }
}
