import Foundation
import Glibc
import TestSupport
import Testing

extension InteropSuite {
    /// Clients over TLS, and sockets, while servers come and go.
    @Suite struct TakeoverPeerTests {
        @Test(
            "P1: clients over TLS that connect again lose nothing over takeovers and kills",
            arguments: Proof.allCases)
        func overTLS(proof: Proof) throws {
            let fixture = try TLSFixture()
            let server = fixture.server
            let port = Ports.free()
            var backup = server.standardBackup(disks: ["vda", "vdb"], tag: "tls")
            backup.endpoint = .tcp(port)
            backup.tls = "yes"
            let job = try server.begin("vm1", backup)
            func uri(_ target: String) throws -> String {
                let name = try job.export(target).name
                return "nbds://\(fixture.user(proof))localhost:\(port)/\(name)"
                    + "?\(fixture.query(proof))"
            }
            let machine = TakeoverTests.Machine(fixture.uri("vda", proof), blocks: 2048)
            let reader = TakeoverTests.PatientClient(try uri("vda"))
            var image: [UInt8] = []
            for (index, offset) in stride(from: 0, to: fixture.live.sizeBytes, by: 4 << 20)
                .enumerated()
            {
                // In the midst of what it reads.
                image += try reader.read(offset, 1 << 20)
                if index.isMultiple(of: 2) {
                    try server.takeOver()
                } else {
                    server.kill()
                    try server.start()
                }
                image += try reader.read(offset + 1 << 20, 3 << 20)
            }
            #expect(image == (try fixture.live.content("vda")))
            #expect(reader.connects >= 4)
            let written = try machine.stop()
            #expect(written.blocks.count > 50 && written.connects >= 4, "\(written.connects)")
            // A program that does not come back is started again.
            let copy = fixture.live.directory.file("copy")
            let first = try Command("nbdcopy", [try uri("vdb"), copy])
            try server.takeOver()
            if try !first.result(timeout: 30).succeeded {
                try Command.run("nbdcopy", [try uri("vdb"), copy]).output()
            }
            #expect(try Bytes.ofFile(copy) == (try fixture.live.content("vdb")))
            try server.end("vm1", job)
            try TakeoverTests().expect(fixture.live, "vda", written.blocks)
            try server.stop()
        }

        @Test("an old server that is still busy with its end holds no socket of the new one")
        func keptSockets() throws {
            let directory = try TemporaryDirectory()
            let program = directory.file("told")
            let asleep = directory.file("asleep")
            try Files.write(
                "#!/bin/sh\necho $$ >'\(asleep)'\nexec sleep 60 >/dev/null 2>&1\n", to: program)
            defer {
                let sleeper = Int32(Files.read(asleep).filter(\.isNumber))
                if let sleeper { kill(sleeper, SIGKILL) }
            }
            try Command.run("chmod", ["755", program]).output()
            let fixture = try LiveFixture(options: ["--event-exec", program])
            let server = fixture.server
            // The end of a job is told, and the old server waits a while for the program.
            try server.end("vm1", try fixture.begin(tag: "told"))
            let job = try fixture.begin(tag: "left", tcp: true)
            try server.takeOver { old, new in
                // Both may have what this process has left open.
                let shared = Self.sockets(of: old).intersection(Self.sockets(of: new))
                    .subtracting(Self.sockets(of: getpid()))
                #expect(shared.isEmpty, "\(shared)")
                #expect(!Self.sockets(of: new).isEmpty)
                // One that has ended has no descriptor at all.
                #expect(Files.listing("/proc/\(old)/fd").count > 2, "it has ended already")
            }
            try server.end("vm1", job)
            try server.stop()
        }

        /// Sockets that a process has, by the kernel's numbers.
        private static func sockets(of process: Int32) -> Set<String> {
            let place = "/proc/\(process)/fd"
            let files = FileManager.default
            return Set(
                ((try? files.contentsOfDirectory(atPath: place)) ?? []).compactMap {
                    let target = try? files.destinationOfSymbolicLink(atPath: "\(place)/\($0)")
                    return target?.hasPrefix("socket:") == true ? target : nil
                })
        }
    }
}
