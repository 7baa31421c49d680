package import NBDServer

// Stands in for the XML layer until it is merged.
package struct DomainDisk: Sendable, Hashable {
    package var target: String
    package var kind: SourceKind
    package var path: String?
    package var readOnly: Bool
    package var cacheMode: CacheMode
    package var discardMode: DiscardMode
    package var device: String
}
package struct DomainDefinition: Sendable, Hashable {
    package var name: String
    package var uuid: String
    package var disks: [DomainDisk]
    package var xml: String
    package static func parse(_ xml: String) throws(ControlError) -> DomainDefinition {
        throw .noJob
    }
    package init(name: String, disks: [DomainDisk]) {
        self.name = name
        uuid = ""
        self.disks = disks
        xml = ""
    }
    package func liveExportName(target: String) -> String { "\(name)/\(target)" }
}
package struct BackupRequest: Sendable {
    package static func parse(_ xml: String) throws(ControlError) -> BackupRequest { throw .noJob }
}
package struct CheckpointRequest: Sendable {
    package var name: String?
    package static func parse(_ xml: String) throws(ControlError) -> CheckpointRequest {
        throw .noJob
    }
}
package struct BackupPlan: Sendable {
    package struct Disk: Sendable {
        package var target: String
        package var participates: Bool
        package var scratch: ScratchConfiguration?
        package var exportName: String
        package var exportBitmap: String?
    }
    package var jobID: String
    package var disks: [Disk]
    package var endpoint: ListenEndpoint
    package static func make(
        _ request: BackupRequest, domain: DomainDefinition, jobID: String, reuseExternal: Bool,
        scratchSuffix: String, firstIndex: Int
    ) throws(ControlError) -> BackupPlan { throw .noJob }
    package func jobConfiguration(
        diskIDs: [String: DiskID], holdLimitMilliseconds: UInt64
    ) throws(ControlError) -> JobConfiguration { throw .noJob }
    package func xml(startedEndpoint: ListenEndpoint?) -> String { "" }
}
package func controlError(from fault: ServerFault) -> ControlError { .noJob }
extension ControlError {
    package static var noJob: ControlError {
        ControlError(code: "no-job", libvirtCode: 104, message: "x", httpStatus: 404)
    }
}
package enum XMLWriter {
    package static func escaped(_ text: String, inAttribute: Bool = false) -> String { text }
}
extension ControlError {
    package static func domainNotFound(_ name: String) -> ControlError { noJob }
    package static func domainExists(_ name: String) -> ControlError { noJob }
    package static func domainBusy(_ name: String) -> ControlError { noJob }
    package static func jobNotFound(_ name: String) -> ControlError { noJob }
    package static func jobAmbiguous(_ name: String) -> ControlError { noJob }
    package static var noActiveJob: ControlError { noJob }
}
