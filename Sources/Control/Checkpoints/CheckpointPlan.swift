/// Turns what a client asks for into a checkpoint, every default filled in.
package enum CheckpointPlan {
    /// Plans a new checkpoint.
    ///
    /// Its parent is the current one, and a time or parent of the request is ignored, as libvirt
    /// does. The default name is the time in seconds, or the next free number after it.
    ///
    /// - Throws: 9 for a name that is taken; 67 for disks that are unknown, listed twice, empty or
    ///   read-only, and for a bitmap not named as the checkpoint; 27 for a name too long.
    package static func create(
        _ request: CheckpointRequest, domain: DomainDefinition, tree: CheckpointTree,
        now: UInt64, jobID: String? = nil
    ) throws(ControlError) -> CheckpointMetadata {
        let name = request.name ?? freeName(from: now, in: tree)
        guard name.utf8.count <= CheckpointMetadata.nameBytesMax else {
            throw .checkpointNameTooLong(name)
        }
        try tree.checkIsFree(name)
        guard !domain.disks.isEmpty else { throw .checkpointWithoutDisks }
        guard request.disks?.count ?? 0 <= domain.disks.count else {
            throw .checkpointDisksTooMany
        }
        let (known, detached) = try align(request.disks, name: name, domain: domain)
        if let unknown = detached.first { throw .unknownDisk(unknown.target) }
        for disk in known {
            if let bitmap = disk.bitmap, bitmap != name {
                throw .bitmapMustMatch(disk: disk.target, checkpoint: name)
            }
        }
        return CheckpointMetadata(
            name: name, description: request.description, parent: tree.current, creationTime: now,
            sequence: tree.nextSequence, disks: known, domainXML: domain.xml, jobID: jobID,
            phase: .pending)
    }

    /// Plans the metadata of a checkpoint that was made before, as its XML has it.
    ///
    /// Disks that the domain no longer has are kept as they are.
    ///
    /// - Throws: 27 without a name, 1 without a time, 8 for a parent that cannot be and for a
    ///   domain of another uuid, 67 as for a new one.
    package static func redefine(
        _ request: CheckpointRequest, domain: DomainDefinition, tree: CheckpointTree
    ) throws(ControlError) -> CheckpointMetadata {
        guard let name = request.name else { throw .checkpointWithoutName }
        guard let creationTime = request.creationTime else { throw .checkpointWithoutTime }
        guard name.utf8.count <= CheckpointMetadata.nameBytesMax else {
            throw .checkpointNameTooLong(name)
        }
        if let uuid = request.domainUUID, UUIDText.normalized(uuid) != domain.uuid {
            throw .checkpointOfOtherDomain(name, uuid: domain.uuid)
        }
        let replaced = tree[name]
        let (known, detached) = try align(request.disks, name: name, domain: domain)
        let metadata = CheckpointMetadata(
            name: name, description: request.description, parent: request.parent,
            creationTime: creationTime, sequence: replaced?.sequence ?? tree.nextSequence,
            disks: known + detached, domainXML: request.domainXML, jobID: replaced?.jobID)
        var trial = tree
        try trial.redefine(metadata)
        return metadata
    }

    private static func freeName(from now: UInt64, in tree: CheckpointTree) -> String {
        var number = now
        while tree[String(number)] != nil { number += 1 }
        return String(number)
    }

    /// Gives every disk of the domain its part, in the domain's order.
    ///
    /// Disks listed that it does not have come apart.
    private static func align(
        _ listed: [CheckpointRequest.Disk]?, name: String, domain: DomainDefinition
    ) throws(ControlError) -> (
        known: [CheckpointMetadata.Disk], detached: [CheckpointMetadata.Disk]
    ) {
        guard let listed else {
            let disks = domain.disks.map {
                CheckpointMetadata.Disk(target: $0.target, bitmap: $0.isTrackable ? name : nil)
            }
            return (disks, [])
        }
        var parts: [String: CheckpointMetadata.Disk] = [:]
        var detached: [CheckpointMetadata.Disk] = []
        for disk in listed {
            let bitmap = disk.participates ? disk.bitmap ?? name : nil
            guard
                let source = domain.disks.first(where: {
                    $0.target == disk.name || $0.path == disk.name
                })
            else {
                detached.append(CheckpointMetadata.Disk(target: disk.name, bitmap: bitmap))
                continue
            }
            guard parts[source.target] == nil else { throw .diskListedTwice(source.target) }
            if bitmap != nil, let unserved = source.unserved {
                throw .diskNotServed(source.target, reason: unserved.reason)
            }
            guard bitmap == nil || source.isTrackable else {
                throw .diskEmptyOrReadOnly(source.target)
            }
            parts[source.target] = CheckpointMetadata.Disk(target: source.target, bitmap: bitmap)
        }
        let known = domain.disks.map {
            parts[$0.target] ?? CheckpointMetadata.Disk(target: $0.target, bitmap: nil)
        }
        return (known, detached)
    }
}

extension DomainDisk {
    /// Whether the disk is served and can change.
    var isTrackable: Bool { isServable && !readOnly }
}
