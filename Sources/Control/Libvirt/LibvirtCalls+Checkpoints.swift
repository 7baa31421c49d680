import LibvirtProtocol

/// Checkpoints: made, listed, described and deleted.
extension LibvirtCalls {
    /// Flags of a checkpoint's creation (`virDomainCheckpointCreateFlags`).
    enum CheckpointCreate {
        static let redefine: UInt32 = 1
        static let quiesce: UInt32 = 2
        static let validate: UInt32 = 4
    }

    /// What of a checkpoint's description is asked for (`virDomainCheckpointXMLFlags`).
    enum CheckpointForm {
        static let secure: UInt32 = 1
        static let noDomain: UInt32 = 2
        static let size: UInt32 = 4
    }

    /// What a list of checkpoints is cut down to (`virDomainCheckpointListFlags`).
    enum CheckpointList {
        /// Of a domain its roots; of a checkpoint not only its children.
        static let deepOrRoots: UInt32 = 1
        static let topological: UInt32 = 2
        static let leaves: UInt32 = 4
        static let noLeaves: UInt32 = 8
        static let all: UInt32 = 15
    }

    /// What goes with a checkpoint (`virDomainCheckpointDeleteFlags`).
    enum CheckpointDelete {
        static let children: UInt32 = 1
        static let metadataOnly: UInt32 = 2
        static let childrenOnly: UInt32 = 4
    }

    static let checkpoints: [Procedure: LibvirtHandler] = [
        .checkpointCreateXML: { call in
            let domain = try await call.domain()
            let xml = try call.arguments.string()
            let flags = try call.flags(7, function: "qemuCheckpointCreateXML")
            try refuse(creation: flags)
            do throws(ControlError) {
                let made = try await call.manager.createCheckpoint(
                    domain: domain.name, xml: xml,
                    redefine: flags & CheckpointCreate.redefine != 0,
                    validates: flags & CheckpointCreate.validate != 0,
                    quiesces: flags & CheckpointCreate.quiesce != 0)
                return reply { $0.checkpoint(WireCheckpoint(name: made.name, domain: domain.wire)) }
            } catch {
                throw WireError(inCheckpoint: error)
            }
        },
        .checkpointGetXMLDesc: { call in
            let (name, domain) = try await call.checkpoint()
            let flags = try call.flags(7, function: "qemuCheckpointGetXMLDesc")
            let isSecure = flags & CheckpointForm.secure != 0
            if isSecure { try call.session.refuseSecrets("virDomainCheckpointGetXMLDesc") }
            let body = try await call.manager.checkpointXML(
                name, of: domain.name, withDomain: flags & CheckpointForm.noDomain == 0,
                withSizes: flags & CheckpointForm.size != 0, showsSecrets: isSecure)
            return reply { $0.string(body.xml) }
        },
        .domainListAllCheckpoints: { call in
            let domain = try await call.domain()
            return try await list(&call, domain, from: nil, "qemuDomainListAllCheckpoints")
        },
        .checkpointListAllChildren: { call in
            let (name, domain) = try await call.checkpoint()
            return try await list(
                &call, domain, from: name, "qemuDomainCheckpointListAllChildren")
        },
        .checkpointLookupByName: { call in
            let domain = try await call.domain()
            let name = try call.arguments.string()
            _ = try call.flags(function: "qemuDomainCheckpointLookupByName")
            try await call.manager.checkIsKnown(checkpoint: name, of: domain.name)
            return reply { $0.checkpoint(WireCheckpoint(name: name, domain: domain.wire)) }
        },
        .checkpointGetParent: { call in
            let (name, domain) = try await call.checkpoint()
            _ = try call.flags(function: "qemuDomainCheckpointGetParent")
            let parent = try await call.manager.parentName(ofCheckpoint: name, of: domain.name)
            return reply { $0.checkpoint(WireCheckpoint(name: parent, domain: domain.wire)) }
        },
        .checkpointDelete: { call in
            let (name, domain) = try await call.checkpoint()
            let flags = try call.flags(7, function: "qemuCheckpointDelete")
            try await call.manager.deleteCheckpoint(
                name, of: domain.name, scope: try scope(ofDeletion: flags),
                metadataOnly: flags & CheckpointDelete.metadataOnly != 0)
            return nothing
        },
    ]

    /// Flags that are known and do not go together.
    private static func refuse(creation flags: UInt32) throws {
        let redefines = flags & CheckpointCreate.redefine != 0
        if redefines, flags & CheckpointCreate.quiesce != 0 {
            throw WireError.exclusiveFlags(
                "VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE", "VIR_DOMAIN_CHECKPOINT_CREATE_QUIESCE",
                in: "virDomainCheckpointCreateXML", domain: WireErrorDomain.checkpoint)
        }
        if !redefines, flags & CheckpointCreate.validate != 0 {
            throw WireError.neededFlag(
                "VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE",
                by: "VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE",
                in: "virDomainCheckpointCreateXML", domain: WireErrorDomain.checkpoint)
        }
    }

    private static func scope(ofDeletion flags: UInt32) throws -> CheckpointTree.Scope {
        switch (flags & CheckpointDelete.children != 0, flags & CheckpointDelete.childrenOnly != 0)
        {
        case (false, false): return .one
        case (true, false): return .withDescendants
        case (false, true): return .descendantsOnly
        case (true, true):
            throw WireError.exclusiveFlags(
                "VIR_DOMAIN_CHECKPOINT_DELETE_CHILDREN",
                "VIR_DOMAIN_CHECKPOINT_DELETE_CHILDREN_ONLY", in: "virDomainCheckpointDelete",
                domain: WireErrorDomain.checkpoint)
        }
    }

    private static func list(
        _ call: inout LibvirtCall, _ domain: LibvirtDomain, from parent: String?,
        _ function: String
    ) async throws -> XDRWriter {
        let needsResults = try call.arguments.int() != 0
        let flags = try call.flags(CheckpointList.all, function: function)
        if let parent { try await call.manager.checkIsKnown(checkpoint: parent, of: domain.name) }
        let names = try await call.manager.checkpointNames(
            of: domain.name, filter(flags, from: parent))
        let found = names.map { WireCheckpoint(name: $0, domain: domain.wire) }
        return reply {
            $0.checkpoints(needsResults ? found : [])
            $0.int(Int32(clamping: found.count))
        }
    }

    /// With both kinds of leaves a list is empty, as libvirt's is; nil says so.
    static func filter(_ flags: UInt32, from parent: String?) -> CheckpointFilter? {
        let isDeep = flags & CheckpointList.deepOrRoots != 0
        var filter = CheckpointFilter()
        filter.from = parent
        filter.descendants = parent != nil && isDeep
        filter.roots = parent == nil && isDeep
        filter.topological = flags & CheckpointList.topological != 0
        filter.leaves = flags & CheckpointList.leaves != 0
        filter.noLeaves = flags & CheckpointList.noLeaves != 0
        return filter.leaves && filter.noLeaves ? nil : filter
    }
}

extension JobManager {
    /// Names of the checkpoints that pass a filter, in its order; nil lets none pass.
    ///
    /// - Throws: 103 for an unknown checkpoint to start from.
    func checkpointNames(
        of name: String, _ filter: CheckpointFilter?
    ) throws(ControlError) -> [String] {
        try filter?.names(in: try domain(name).checkpoints) ?? []
    }

    /// - Throws: 103 for an unknown checkpoint.
    func checkIsKnown(checkpoint: String, of name: String) throws(ControlError) {
        _ = try domain(name).checkpoints.checkpoint(checkpoint)
    }

    /// - Throws: 103 for an unknown checkpoint, and for one without a parent.
    func parentName(
        ofCheckpoint checkpoint: String, of name: String
    ) throws(ControlError) -> String {
        guard let parent = try domain(name).checkpoints.checkpoint(checkpoint).parent else {
            throw .checkpointWithoutParent(checkpoint)
        }
        return parent
    }
}
