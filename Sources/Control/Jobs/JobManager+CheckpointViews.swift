import Foundation
import ServerInterface

extension JobManager {
    /// Most extents listed per disk when they are asked for.
    package static let extentsMax = 16_384

    /// The domain's checkpoints that pass `filter`.
    package func listCheckpoints(
        of name: String, _ filter: CheckpointFilter = CheckpointFilter()
    ) async throws(ControlError) -> [CheckpointView] {
        let names = try filter.names(in: try domain(name).checkpoints)
        return try await views(of: names, domain: name)
    }

    /// One checkpoint.
    package func checkpoint(
        _ checkpoint: String, of name: String
    ) async throws(ControlError) -> CheckpointView {
        _ = try domain(name).checkpoints.checkpoint(checkpoint)
        guard let view = try await views(of: [checkpoint], domain: name).first else {
            throw .checkpointNotFound(checkpoint)
        }
        return view
    }

    /// The parent of a checkpoint.
    ///
    /// - Throws: 103 for an unknown checkpoint and for one that has none.
    package func checkpointParent(
        _ checkpoint: String, of name: String
    ) async throws(ControlError) -> CheckpointView {
        guard let parent = try domain(name).checkpoints.checkpoint(checkpoint).parent else {
            throw .checkpointWithoutParent(checkpoint)
        }
        return try await self.checkpoint(parent, of: name)
    }

    /// A checkpoint in libvirt's output form.
    ///
    /// - Parameters:
    ///   - withDomain: adds the domain's XML of the time.
    ///   - withSizes: adds the bytes changed since, on disks that can tell, and where they are.
    ///   - showsSecrets: passwords stay in the domain's XML.
    package func checkpointXML(
        _ checkpoint: String, of name: String, withDomain: Bool = true, withSizes: Bool = false,
        showsSecrets: Bool = true
    ) async throws(ControlError) -> CheckpointXMLBody {
        var metadata = try domain(name).checkpoints.checkpoint(checkpoint)
        if withDomain, !showsSecrets, let xml = metadata.domainXML {
            metadata.domainXML = try BackupToolXML.withoutSecrets(xml)
        }
        guard withSizes else { return CheckpointXMLBody(xml: metadata.xml(withDomain: withDomain)) }
        var disks = try await self.checkpoint(checkpoint, of: name).disks
        let ids = trackedDisks(of: try domain(name))
        var sizes: [String: UInt64] = [:]
        for index in disks.indices where disks[index].bitmap != nil {
            guard let id = ids[disks[index].disk],
                let report = try? await engine.dirtyReport(
                    since: checkpoint, disk: id, extentLimit: Self.extentsMax)
            else { continue }
            sizes[disks[index].disk] = report.dirtyBytes
            disks[index].size = report.dirtyBytes
            disks[index].extents = report.extents
            let listed = report.extents.reduce(0) { $0 + $1.length }
            disks[index].extentsCut = listed < report.dirtyBytes
        }
        return CheckpointXMLBody(
            xml: metadata.xml(sizes: sizes, withDomain: withDomain), disks: disks)
    }

    private func views(
        of names: [String], domain name: String
    ) async throws(ControlError) -> [CheckpointView] {
        let bases = try await incrementalBases(of: name, fallsBackToFull: false)
        let tree = try domain(name).checkpoints
        let descendants = tree.descendantCounts
        let children = Dictionary(grouping: tree.names.compactMap { tree[$0]?.parent }) { $0 }
        let current = tree.current
        return names.compactMap { tree[$0] }.map { checkpoint in
            CheckpointView(
                name: checkpoint.name, domain: name, description: checkpoint.description,
                parent: checkpoint.parent,
                creationTime: Date(timeIntervalSince1970: Double(checkpoint.creationTime)),
                children: children[checkpoint.name]?.count ?? 0,
                descendants: descendants[checkpoint.name] ?? 0,
                current: checkpoint.name == current,
                disks: checkpoint.disks.map { disk in
                    CheckpointDiskView(
                        disk: disk.target, checkpoint: disk.bitmap == nil ? "no" : "bitmap",
                        bitmap: disk.bitmap,
                        usable: bases.unready[checkpoint.name] == nil
                            && bases.usable[disk.target]?.contains(checkpoint.name) ?? false)
                })
        }
    }
}
