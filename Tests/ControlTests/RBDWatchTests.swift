import Foundation
import ServerInterface
import Testing

@testable import Control

/// Who has an image of Ceph open, as a program `rbd` tells it.
@Suite struct RBDWatchTests {
    private final class Cluster {
        let fixture: ControlFixture
        let watch: RBDWatch

        init() throws {
            fixture = try ControlFixture()
            let program = fixture.root + "/rbd"
            try Data("#!/bin/sh\ncat '\(fixture.root)/answer' || exit 3\n".utf8)
                .write(to: URL(fileURLWithPath: program))
            try FileManager.default.setAttributes(
                [.posixPermissions: 0o700], ofItemAtPath: program)
            let image = ImageConfiguration(layers: [
                ImageLayer(.raw, .rbd(try #require(RBDImage(name: "pool/image"))))
            ])
            let disk = DiskConfiguration(
                exportName: "vm1/vda", path: "rbd:pool/image", kind: .file, readOnly: false,
                cacheMode: .buffered, discardMode: .unmap)
            watch = try #require(
                RBDWatch(image, for: disk, file: fixture.root + "/own", program: program))
        }

        func open(by clients: Int...) throws {
            let watchers = clients.map {
                #"{"address": "10.0.0.1:0/\#($0)", "client": \#($0), "cookie": 1}"#
            }
            try Data(#"{"watchers": [\#(watchers.joined(separator: ","))]}"#.utf8)
                .write(to: URL(fileURLWithPath: fixture.root + "/answer"))
        }
    }

    private func isTaken(_ body: () throws -> Void) throws -> Bool {
        do {
            try body()
            return false
        } catch let fault as RBDWatch.Fault {
            if case .taken = fault { return true }
            throw fault
        }
    }

    @Test("P3: only the one that came with this server's program is known for its own")
    func own() throws {
        let cluster = try Cluster()
        let watch = cluster.watch
        try cluster.open()
        let before = try watch.before()
        try cluster.open(by: 7)
        try watch.after(before, unless: { false })
        // The program was killed, and is not forgotten yet.
        #expect(try watch.before().count == 1)
        try cluster.open(by: 7, 8)
        #expect(try isTaken { _ = try watch.before() })
        // Whoever comes at the same time is not taken for this server's.
        try cluster.open(by: 7)
        let again = try watch.before()
        try cluster.open(by: 7, 8, 9)
        #expect(try isTaken { try watch.after(again, unless: { false }) })
        try cluster.open(by: 8)
        #expect(try isTaken { _ = try watch.before() })
    }

    @Test("P3: a program that was told to end leaves no note to the next server")
    func stopped() throws {
        let cluster = try Cluster()
        try cluster.open()
        let before = try cluster.watch.before()
        try cluster.open(by: 7)
        try cluster.watch.after(before, unless: { true })
        #expect(try isTaken { _ = try cluster.watch.before() })
    }

    @Test("an answer that does not come is told, with its reason")
    func silent() throws {
        let cluster = try Cluster()
        #expect {
            _ = try cluster.watch.before()
        } throws: { error in
            guard case .unknown(let text) = error as? RBDWatch.Fault else { return false }
            return text.contains("rbd status pool/image") && text.contains("status 3")
        }
    }
}
