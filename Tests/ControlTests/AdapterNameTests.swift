import ServerInterface
import Testing

@testable import Control

/// By what the files of an image's program are called.
@Suite struct AdapterNameTests {
    @Test("P2: images of one name in two clusters do not wait for each other's programs")
    func clusters() throws {
        func name(_ hosts: [String]) throws -> String {
            var rbd = try #require(RBDImage(name: "pool/image"))
            rbd.hosts = hosts.map { StorageHost(name: $0, port: 6789) }
            return Adapters.name(
                of: DiskConfiguration(
                    exportName: "vm1/vda", path: "rbd:pool/image", kind: .network, readOnly: false,
                    cacheMode: .buffered, discardMode: .unmap),
                ImageConfiguration(layers: [ImageLayer(.raw, .rbd(rbd))]))
        }
        #expect(try name(["a", "b"]) == name(["B", "a"]))
        #expect(try name(["a"]) != name(["b"]))
        #expect(try name([]) == name([]))
    }
}
