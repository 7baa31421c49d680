import Foundation
import Synchronization
import Testing

@testable import NBDServer
@testable import ServerInterface

/// In place of programs that open images.
private final class ScriptedAdapters: AdapterStarting {
    final class Program: Adapter {
        let address: UpstreamAddress
        let problem: String?
        let stops = Tally()
        /// It does not end when it is told to.
        let isDeaf: Bool
        /// Who waits for that it does.
        let followers = Mutex<[@Sendable () -> Void]>([])

        init(_ address: UpstreamAddress, _ problem: String? = nil, isDeaf: Bool = false) {
            self.address = address
            self.problem = problem
            self.isDeaf = isDeaf
        }

        var zeroingUnit: UInt64 { 1 }
        var sharedSocket: String? { nil }
        var before: ImageState { ImageState(files: 0, changed: 0) }
        func ensureRuns(milliseconds: Int32) throws(AdapterFault) {}
        func takeProblem() -> String? { problem }
        func takeSharingRefusal() -> String? { nil }
        func end(milliseconds: Int32) -> ImageState? { nil }
        func stop(whenOver: @escaping @Sendable () -> Void) {
            stops.add()
            if isDeaf { followers.withLock { $0.append(whenOver) } } else { whenOver() }
        }
    }

    /// Done while a program comes up; nil: none does.
    let onStart = Mutex<(@Sendable () -> Void)?>(nil)
    private let program: Program?

    init(_ program: Program? = nil) { self.program = program }

    func start(
        _ image: ImageConfiguration, for disk: DiskConfiguration, milliseconds: Int32
    ) throws(AdapterFault) -> any Adapter {
        let body = onStart.withLock { $0 }
        body?()
        guard let program else { throw AdapterFault("it does not start") }
        return program
    }
}

/// Images that an adapter opens, and who gets them.
@Suite struct AdapterPlaceTests {
    private static func image(_ name: String) throws -> ImageConfiguration {
        ImageConfiguration(layers: [ImageLayer(.raw, .rbd(try #require(RBDImage(name: name))))])
    }

    /// Whether an image may be scratch now.
    private static func isFree(
        _ image: ImageConfiguration, in registry: UpstreamRegistry
    ) -> Bool {
        let found = registry.reserve(
            place: "rbd:pool/image", images: image.allPlaces, name: "scratch",
            for: .scratch(job: "job"))
        guard case .success(let number) = found else { return false }
        registry.remove(number)
        return true
    }

    @Test("P5: a disk's image is nobody's scratch from before its program is started")
    func reserved() async throws {
        let adapters = ScriptedAdapters()
        let fixture = try await ServerFixture(adapters: adapters)
        let registry = fixture.server.shared.upstreams
        let image = try Self.image("pool/image")
        @Sendable func isFree() -> Bool { Self.isFree(image, in: registry) }
        let (starts, free) = (Tally(), Tally())
        adapters.onStart.withLock {
            $0 = {
                starts.add()
                if isFree() { free.add() }
            }
        }
        var disk = DiskConfiguration(
            exportName: "vm1/vdb", path: "rbd:pool/image", kind: .network, readOnly: false,
            cacheMode: .buffered, discardMode: .unmap)
        disk.image = image
        let configuration = disk
        await #expect(throws: ServerFault.self) {
            try await fixture.server.attachDisk(configuration)
        }
        #expect(starts.value == 1)
        #expect(free.value == 0)
        // One that could not be opened holds nothing.
        #expect(isFree())
        await fixture.close()
    }

    @Test("P5: an image of which nobody can tell who has it open is no scratch")
    func unknownHolder() async throws {
        let address = try UpstreamAddress(place: .unix(path: "/nonexistent/socket"), name: "")
        let program = ScriptedAdapters.Program(
            address, "who else has the image open is not known: 'rbd' has failed")
        let fixture = try await ServerFixture(adapters: ScriptedAdapters(program))
        let scratch = ScratchConfiguration(
            kind: .network, path: "rbd:pool/scratch", reuseExternal: false,
            image: try Self.image("pool/scratch"))
        let configuration = JobConfiguration(
            id: "job",
            disks: [
                JobDiskConfiguration(
                    disk: fixture.disk, target: "vda", exportName: "vda", scratch: scratch)
            ], endpoint: .unix(path: fixture.path("job.sock"), mode: 0o600))
        let error = await #expect(throws: ServerFault.self) {
            try await fixture.server.beginJob(configuration)
        }
        guard case .scratchUnusable("rbd:pool/scratch", let detail)? = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        #expect(detail.contains("who else has the image open is not known"), "\(detail)")
        #expect(program.stops.value == 1)
        await fixture.close()
    }

    @Test("P5: a disk's image is nobody's scratch while the program that had it is still to end")
    func slowEnd() async throws {
        let address =
            FileManager.default.temporaryDirectory.path
            + "/np-live-\(UInt32.random(in: 0...UInt32.max))"
        defer { try? FileManager.default.removeItem(atPath: address) }
        let program = ScriptedAdapters.Program(
            try UpstreamAddress(place: .unix(path: address), name: "vm1/vda"), isDeaf: true)
        let fixture = try await ServerFixture(adapters: ScriptedAdapters(program))
        _ = try await fixture.server.listenLive(
            .unix(path: address, mode: 0o600), security: .plaintext)
        let registry = fixture.server.shared.upstreams
        let image = try Self.image("pool/image")
        func isFree() -> Bool { Self.isFree(image, in: registry) }
        var disk = DiskConfiguration(
            exportName: "vm1/vdb", path: "rbd:pool/image", kind: .network, readOnly: false,
            cacheMode: .buffered, discardMode: .unmap)
        disk.image = image
        let id = try await fixture.server.attachDisk(disk)
        try await fixture.server.detachDisk(id)
        #expect(await program.stops.reaches(1))
        #expect(!isFree())
        let followers = program.followers.withLock { $0 }
        #expect(followers.count == 1)
        for follower in followers { follower() }
        #expect(isFree())
        await fixture.close()
    }
}
