import Control
import Foundation
import ServerInterface

/// A manager over a fake engine, with directories of its own that go when the test is over.
final class ControlFixture: Sendable {
    let engine = FakeEngine()
    let root: String
    var stateDirectory: String { root + "/state" }
    var runDirectory: String { root + "/run" }

    init() throws {
        root =
            FileManager.default.temporaryDirectory.path + "/np-"
            + UUID().uuidString.prefix(8).lowercased()
        try FileManager.default.createDirectory(
            atPath: root + "/run", withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: root) }

    func manager(
        _ engine: FakeEngine? = nil, stored: Bool = false,
        _ change: (inout JobManagerSettings) -> Void = { _ in }
    ) async throws -> JobManager {
        var settings = JobManagerSettings(
            runDirectory: runDirectory,
            liveEndpoint: .unix(path: runDirectory + "/live.sock", mode: 0o600))
        // Disks of the fake engine are there when the machine gets round to them.
        settings.startMilliseconds = 600_000
        change(&settings)
        let manager = JobManager(
            engine: engine ?? self.engine,
            state: stored ? try StateDirectory(path: stateDirectory) : nil, settings: settings)
        await manager.activate()
        return manager
    }

    /// A domain with two disks and an empty drive.
    func domainXML(_ name: String = "vm1") -> String {
        """
        <domain type='kvm'>
          <name>\(name)</name>
          <devices>
            <disk type='file' device='disk'><driver name='qemu' type='raw'/>
              <source file='\(root)/\(name)-a.raw'/><target dev='vda' bus='virtio'/></disk>
            <disk type='file' device='disk'><driver name='qemu' type='raw'/>
              <source file='\(root)/\(name)-b.raw'/><target dev='vdb' bus='virtio'/></disk>
            <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
          </devices>
        </domain>
        """
    }

    func backupXML(socket: String) -> String {
        "<domainbackup mode='pull'><server transport='unix' socket='\(socket)'/></domainbackup>"
    }
}

/// Waits until a condition holds, for at most a minute.
func eventually(_ condition: () async throws -> Bool) async throws -> Bool {
    let end = ContinuousClock.now + .seconds(60)
    while ContinuousClock.now < end {
        if try await condition() { return true }
        try await Task.sleep(for: .milliseconds(10))
    }
    return try await condition()
}
