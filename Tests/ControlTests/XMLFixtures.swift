import Control
import ServerInterface
import Testing

/// Runs `body`, which must throw, and returns its error.
func refusal<Value>(
    of body: () throws(ControlError) -> Value, sourceLocation: SourceLocation = #_sourceLocation
) -> ControlError? {
    do throws(ControlError) {
        _ = try body()
        Issue.record("nothing was refused", sourceLocation: sourceLocation)
        return nil
    } catch {
        return error
    }
}

/// The domain of most tests: two images, a block device, an empty drive and a read-only image.
func makeDomain() -> DomainDefinition {
    DomainDefinition(
        name: "vm1",
        disks: [
            DomainDisk(target: "vda", path: "/img/vda.raw"),
            DomainDisk(target: "vdb", path: "/img/vdb.raw"),
            DomainDisk(target: "vdc", kind: .block, path: "/dev/vg/vdc"),
            DomainDisk(target: "hda", path: nil, readOnly: true, device: "cdrom"),
            DomainDisk(target: "vdd", path: "/img/vdd.raw", readOnly: true),
        ])
}

/// A `<domainbackup>` of pull mode on a unix socket with `inner` inside.
func pullXML(
    _ inner: String, server: String = "<server transport='unix' socket='/run/b.sock'/>"
) -> String {
    "<domainbackup mode='pull'>\n\(server)\n\(inner)\n</domainbackup>"
}

/// Plans a request with the values that most tests share.
func plan(
    _ xml: String, domain: DomainDefinition = makeDomain(), reuseExternal: Bool = false,
    known: Set<String> = []
) throws(ControlError) -> BackupPlan {
    let usable = Dictionary(uniqueKeysWithValues: domain.disks.map { ($0.target, known) })
    return try BackupPlan.make(
        try BackupRequest.parse(xml), domain: domain,
        jobID: "00000000-0000-4000-8000-000000000001", reuseExternal: reuseExternal,
        scratchSuffix: "1795223818", firstIndex: 21,
        bases: IncrementalBases(known: known, usable: usable))
}
