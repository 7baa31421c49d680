import Foundation
import Glibc
import TestSupport
import Testing

extension InteropSuite {
    /// Storage and name servers that do not answer: who named them waits, and nobody else.
    @Suite struct HungStorageTests {
        /// A server with a healthy and a doomed machine, and a file system that freezes.
        private final class Fixture {
            let frozen: TinyFileSystem
            let directory: TemporaryDirectory
            let server: ServerUnderTest

            init(options: [String] = ["--storage-timeout", "3"]) throws {
                frozen = try TinyFileSystem(mebibytes: 32)
                directory = try TemporaryDirectory()
                var domains: [DomainDescription] = []
                for name in ["good", "doomed"] {
                    let path = directory.file(name + ".img")
                    _ = try Images.mixed(path, bytes: 4 << 20, seed: 3)
                    domains.append(DomainDescription(name, [DiskDescription("vda", path)]))
                }
                server = try ServerUnderTest(domains, options: options)
            }

            /// A backup whose scratch lies on the file system that freezes.
            func hungScratch(_ tag: String) -> BackupDescription {
                var backup = server.standardBackup(disks: ["vda"], tag: tag)
                backup.disks[0].scratch = frozen.path + "/scratch-" + tag
                return backup
            }

            /// A backup whose socket lies there.
            func hungSocket(_ tag: String) -> BackupDescription {
                var backup = server.standardBackup(disks: ["vda"], tag: tag)
                backup.endpoint = .unix(frozen.path + "/\(tag).sock")
                return backup
            }

            func start(_ domain: String, _ backup: BackupDescription) throws -> Command {
                try server.startCLI(try server.beginArguments(domain, backup))
            }
        }

        /// Fails when the body takes longer than a call that waits for nothing may.
        private func quickly<Value>(_ what: String, _ body: () throws -> Value) rethrows -> Value {
            let begun = ContinuousClock.now
            defer {
                let spent = ContinuousClock.now - begun
                #expect(spent < .seconds(2), "\(what) took \(spent)")
            }
            return try body()
        }

        private func eventually(
            _ seconds: Double = 20, _ condition: () throws -> Bool
        ) rethrows -> Bool {
            let end = Date(timeIntervalSinceNow: seconds)
            while Date() < end {
                if try condition() { return true }
                Thread.sleep(forTimeInterval: 0.02)
            }
            return false
        }

        @Test("P6: a begin on a hung path holds up nobody else, and leaves nothing when it answers")
        func begins() throws {
            let fixture = try Fixture()
            let (server, frozen) = (fixture.server, fixture.frozen)
            let other = try server.begin("good", disks: ["vda"], tag: "other")
            try frozen.freeze()
            let hung = [
                try fixture.start("doomed", fixture.hungScratch("a")),
                try fixture.start("doomed", fixture.hungSocket("b")),
            ]
            #expect(
                try eventually {
                    try server.cli(["backup-list"]).output().components(separatedBy: "starting")
                        .count == 3
                })
            for command in [["list"], ["domblklist", "doomed"], ["backup-list"], ["event"]] {
                _ = try quickly("\(command)") { try server.cli(command).output() }
            }
            // The same disk, with scratch that is well.
            let same = try quickly("a begin on the same disk") {
                try server.begin("doomed", disks: ["vda"], tag: "same")
            }
            try quickly("its end") { try server.end("doomed", same) }
            try quickly("the end of another job") { try server.end("good", other) }
            let next = try quickly("another begin") {
                try server.begin("good", disks: ["vda"], tag: "next")
            }
            for command in hung {
                let result = try command.result(timeout: 30)
                #expect(result.status == 1, "\(result)")
                #expect(result.stderr.contains(frozen.path), "\(result)")
                #expect(result.stderr.contains("3 s"), "\(result)")
            }
            #expect(try !server.cli(["backup-list", "doomed"]).output().contains("starting"))
            try frozen.thaw()
            #expect(eventually { Files.listing(frozen.path) == ["lost+found"] })
            let again = try server.begin("doomed", fixture.hungScratch("a"))
            try server.end("doomed", again)
            try server.end("good", next)
            try server.stop()
            #expect(server.directory.listing().filter { $0.contains("scratch") }.isEmpty)
        }

        /// Threads that make the changes of one file each.
        private func changeThreads(_ server: ServerUnderTest) -> Int {
            let tasks = "/proc/\(server.processID)/task"
            return Files.listing(tasks).count {
                Files.read("\(tasks)/\($0)/comm") == "nbdpull-changes\n"
            }
        }

        // The kernel's workers take buffered writes of two files one after the other where a hash of
        // theirs is the same, which was so for 2 of 40 and for none of others: a look at the threads
        // says for certain that they do not make these.
        @Test(
            "P6: a disk whose file system is frozen holds up nobody else, nor who connects",
            arguments: [1, 2])
        func frozenDisk(rings: Int) throws {
            let frozen = try TinyFileSystem(mebibytes: 32)
            let directory = try TemporaryDirectory()
            let good = (0..<12).map { "good\($0)" }
            let server = try ServerUnderTest(
                try (good + ["doomed"]).map { name in
                    let place = name == "doomed" ? frozen.path : directory.path
                    _ = try Images.mixed("\(place)/\(name).img", bytes: 4 << 20, seed: 3)
                    return DomainDescription(
                        name, [DiskDescription("vda", "\(place)/\(name).img")])
                }, options: ["--rings", "\(rings)", "--storage-timeout", "3"])
            let data = [UInt8](repeating: 7, count: 4096)
            let doomed = try NBDClient(server.liveURI("doomed", "vda"))
            let guests = try good.map { try NBDClient(server.liveURI($0, "vda")) }
            try doomed.write(data, at: 0)
            for guest in guests { try guest.write(data, at: 0) }
            // Whoever waits for the file system is told from who waits for ever.
            let thaw = try Command("sh", ["-c", "sleep 15; exec fsfreeze -u '\(frozen.path)'"])
            try frozen.freeze()
            let hung = try doomed.startWrite(data, at: 8192)
            Thread.sleep(forTimeInterval: 0.2)
            for guest in guests {
                let found = try quickly("a read") { try guest.read(0, 4096) }
                #expect(found == data)
            }
            let writes = try guests.map { try $0.startWrite(data, at: 8192) }
            var served = Set<Int>()
            _ = eventually(2) {
                let waiting = guests.indices.filter { !served.contains($0) }
                NBDClient.waitForActivity(waiting.map { guests[$0] }, milliseconds: 20)
                for index in waiting where guests[index].outcome(of: writes[index]) != nil {
                    served.insert(index)
                }
                return served.count == guests.count
            }
            #expect(served.count == guests.count, "\(served) of \(guests.count)")
            #expect(changeThreads(server) == guests.count + 1)
            let name = good[0]
            for _ in 0..<4 {
                let late = try quickly("a connection") {
                    try NBDClient(server.liveURI(name, "vda"))
                }
                try quickly("its write") { try late.write(data, at: 4096) }
            }
            let job = try quickly("a begin") {
                try server.begin(name, disks: ["vda"], tag: name)
            }
            try quickly("its end") { try server.end(name, job) }
            #expect(thaw.isRunning, "the file system was thawed before its time")
            try frozen.thaw()
            try doomed.flush()
            #expect(eventually { doomed.outcome(of: hung) != nil })
            #expect(try doomed.read(8192, 4096) == data)
            try server.stop()
        }

        @Test("a file's thread goes with its disk, and none is made where all disks lie together")
        func threads() throws {
            let elsewhere = try TinyFileSystem(mebibytes: 32)
            let directory = try TemporaryDirectory()
            let disks = try [("vda", directory.path), ("vdb", directory.path)].map {
                _ = try Images.mixed("\($1)/\($0).img", bytes: 1 << 20, seed: 3)
                return DiskDescription($0, "\($1)/\($0).img")
            }
            let server = try ServerUnderTest([DomainDescription("vm1", disks)])
            let data = [UInt8](repeating: 7, count: 4096)
            for target in ["vda", "vdb"] {
                try NBDClient(server.liveURI("vm1", target)).write(data, at: 0)
            }
            #expect(changeThreads(server) == 0)
            _ = try Images.mixed(elsewhere.path + "/vdc.img", bytes: 1 << 20, seed: 3)
            try server.cli(["attach-disk", "vm1", elsewhere.path + "/vdc.img", "vdc"]).output()
            for target in ["vda", "vdc"] {
                let guest = try NBDClient(server.liveURI("vm1", target))
                try guest.write(data, at: 4096)
                try guest.zero(8192, 8192)
                #expect(try guest.read(4096, 4096) == data)
                #expect(try guest.read(8192, 8192).allSatisfy { $0 == 0 })
            }
            #expect(changeThreads(server) == 2)
            try server.cli(["detach-disk", "vm1", "vda"]).output()
            #expect(eventually { changeThreads(server) == 1 })
            // The file that it was is not kept open, and another's number may be its own.
            try server.cli(["attach-disk", "vm1", directory.path + "/vda.img", "vda"]).output()
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            #expect(try guest.read(4096, 4096) == data)
            try guest.write(data, at: 16384)
            #expect(try guest.read(16384, 4096) == data)
            #expect(changeThreads(server) == 2)
            try server.stop()
        }

        @Test("P6: the end of a job whose scratch hangs holds up no other job and no other guest")
        func ends() throws {
            let fixture = try Fixture(options: ["--copy-timeout", "1"])
            let (server, frozen) = (fixture.server, fixture.frozen)
            let job = try server.begin("doomed", fixture.hungScratch("a"))
            let doomed = try NBDClient(server.liveURI("doomed", "vda"))
            let guest = try NBDClient(server.liveURI("good", "vda"))
            try frozen.freeze()
            _ = try doomed.startWrite([UInt8](repeating: 7, count: 4096), at: 0)
            #expect(
                try eventually {
                    try server.cli(["backup-list"]).output().contains("broken")
                })
            let end = try server.startCLI(["backup-end", "doomed", "--job", job.id])
            #expect(
                try eventually {
                    try server.cli(["backup-list"]).output().contains("ending")
                })
            let other = try quickly("a begin") {
                try server.begin("good", disks: ["vda"], tag: "other")
            }
            try quickly("an end") { try server.end("good", other) }
            try quickly("a write") { try guest.write([UInt8](repeating: 8, count: 4096), at: 0) }
            try frozen.thaw()
            _ = try end.result(timeout: 60)
            withExtendedLifetime(doomed) {}
            #expect(eventually { Files.listing(frozen.path) == ["lost+found"] })
            try server.stop()
        }

        @Test("P1: a resize that hangs is taken back when it ends; no second one runs until then")
        func resize() throws {
            let frozen = try TinyFileSystem(mebibytes: 32)
            let disk = frozen.path + "/a.img"
            try Images.sparse(disk, bytes: 4 << 20)
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", disk)])],
                options: ["--storage-timeout", "2"])
            func size() throws -> Int {
                let facts = try FileManager.default.attributesOfItem(atPath: disk)
                return try #require(facts[.size] as? Int)
            }
            try frozen.freeze()
            let first = try server.cli(["blockresize", "vm1", "vda", "8MiB"])
            #expect(first.status == 1 && first.stderr.contains("2 s"), "\(first)")
            let second = try quickly("a second resize") {
                try server.cli(["blockresize", "vm1", "vda", "12MiB"])
            }
            #expect(second.status == 1 && second.stderr.contains("another resize"), "\(second)")
            try frozen.thaw()
            #expect(
                try eventually {
                    try server.cli(["blockresize", "vm1", "vda", "12MiB"]).status == 0
                })
            #expect(try size() == 12 << 20)
            // Whatever was late has ended.
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            #expect(guest.sizeBytes == 12 << 20)
            try frozen.freeze()
            #expect(try server.cli(["blockresize", "vm1", "vda", "16MiB"]).status == 1)
            try frozen.thaw()
            Thread.sleep(forTimeInterval: 1)
            #expect(try size() == 12 << 20)
            try server.stop()
        }

        @Test("P6: SIGTERM with calls that hang ends everything else in order, and soon")
        func stops() throws {
            let fixture = try Fixture(options: ["--storage-timeout", "60"])
            let (server, frozen) = (fixture.server, fixture.frozen)
            let guest = try NBDClient(server.liveURI("good", "vda"))
            try guest.write([UInt8](repeating: 7, count: 4096), at: 0)
            try server.cli(["checkpoint-create-as", "good", "--name", "c1"]).output()
            _ = try server.begin("good", disks: ["vda"], tag: "other")
            try frozen.freeze()
            let hung = [
                try fixture.start("doomed", fixture.hungScratch("a")),
                try fixture.start("good", fixture.hungSocket("b")),
            ]
            #expect(
                try eventually {
                    try server.cli(["backup-list"]).output().components(separatedBy: "starting")
                        .count == 3
                })
            let begun = ContinuousClock.now
            kill(server.processID, SIGTERM)
            for command in hung {
                let result = try command.result(timeout: 20)
                #expect(result.status == 1, "\(result)")
            }
            // A thread in the kernel outlives the process's end; its locks and sockets do not.
            #expect(eventually(15) { !Files.exists(server.controlSocket) })
            let next = try Command(
                try ServerUnderTest.binary(),
                [
                    "serve", "--state-dir", server.stateDirectory, "--run-dir",
                    server.directory.file("next"),
                ])
            try next.wait(for: "ready line") { $0.stderr.contains("nbdpull: ready") }
            #expect(ContinuousClock.now - begun < .seconds(20))
            let socket = ["NBDPULL_SOCKET": server.directory.file("next/control.sock")]
            let list = try Command.run(
                try ServerUnderTest.binary(), ["list"], environment: socket
            ).output()
            #expect(!list.contains("degraded"), "\(list)")
            let checkpoints = try Command.run(
                try ServerUnderTest.binary(), ["checkpoint-list", "good"], environment: socket)
            #expect(checkpoints.stdout.contains("c1"), "\(checkpoints)")
            next.terminate()
            #expect(try next.result(timeout: 30).succeeded)
            try frozen.thaw()
            #expect(eventually { !server.isRunning })
            #expect(server.directory.listing().filter { $0.contains("scratch") }.isEmpty)
        }

        @Test("P6: a disk whose path does not answer costs the start only itself, and comes later")
        func starts() throws {
            let fixture = try Fixture()
            let server = fixture.server
            let system = try OneFileSystem(bytes: 1 << 20)
            let path = system.path
            let domain = DomainDescription(
                "late",
                [
                    DiskDescription("vda", path),
                    DiskDescription("vdb", fixture.directory.file("late.img")),
                ])
            try Images.sparse(fixture.directory.file("late.img"), bytes: 1 << 20)
            try Files.write(domain.xml, to: fixture.directory.file("late.xml"))
            try server.cli(["define", fixture.directory.file("late.xml")]).output()
            try server.stop()
            system.hang()
            let begun = ContinuousClock.now
            try server.launch()
            // Machines of other disks are served before the start has given that one up.
            #expect(
                eventually {
                    (try? NBDClient(server.liveURI("good", "vda")).read(0, 4096)) != nil
                })
            let spent = ContinuousClock.now - begun
            #expect(!server.stderr.contains("nbdpull: ready"), "after \(spent)")
            try server.awaitReady()
            #expect(ContinuousClock.now - begun < .seconds(20))
            #expect(server.stderr.contains(path), "\(server.stderr)")
            #expect(try server.cli(["list"]).output().contains("degraded"))
            let disks = try server.cli(["domblklist", "late"])
            #expect(disks.stdout.contains("does not answer"), "\(disks)")
            #expect(try NBDClient(server.liveURI("late", "vdb")).sizeBytes == 1 << 20)
            #expect(try NBDClient(server.liveURI("good", "vda")).sizeBytes == 4 << 20)
            system.answer()
            #expect(
                try eventually {
                    try !server.cli(["list"]).output().contains("degraded")
                })
            #expect(try NBDClient(server.liveURI("late", "vda")).sizeBytes == 1 << 20)
            try server.stop()
        }

        @Test(
            "P6: a name server that does not answer holds up whoever named a host, and nobody else")
        func names() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            try Images.sparse(path, bytes: 1 << 20)
            try Files.write(
                DomainDescription("vm1", [DiskDescription("vda", path)]).xml,
                to: directory.file("vm1.xml"))
            // It takes questions and says nothing.
            let silent = try Command(
                "python3",
                [
                    "-c",
                    "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM);"
                        + " s.bind(('127.53.53.53', 53)); print('bound', flush=True);"
                        + " time.sleep(300)",
                ])
            try silent.wait(for: "name server") { $0.stdout.contains("bound") }
            try Files.write(
                "nameserver 127.53.53.53\noptions timeout:30 attempts:2\n",
                to: directory.file("resolv.conf"))
            let binary = try ServerUnderTest.binary()
            let server = try Command(
                "unshare",
                [
                    "-m", "sh", "-c",
                    "mount --bind \(directory.file("resolv.conf")) /etc/resolv.conf"
                        + " && exec \(binary) serve --allow-plaintext --storage-timeout 2 --domain"
                        + " \(directory.file("vm1.xml")) --state-dir \(directory.file("state"))"
                        + " --run-dir \(directory.file("run"))",
                ])
            try server.wait(for: "ready line") { $0.stderr.contains("nbdpull: ready") }
            var backup = BackupDescription(
                .tcp(10_809),
                [BackupDiskDescription("vda", scratch: directory.file("scratch"))])
            backup.host = "silent.example"
            try Files.write(backup.xml, to: directory.file("backup.xml"))
            let socket = ["NBDPULL_SOCKET": directory.file("run/control.sock")]
            let begin = try Command(
                binary, ["backup-begin", "vm1", directory.file("backup.xml")],
                environment: socket)
            for _ in 0..<5 {
                try quickly("list") {
                    _ = try Command.run(binary, ["list"], environment: socket).output()
                }
            }
            try quickly("a begin that names no host") {
                _ = try Command.run(binary, ["backup-begin", "vm1"], environment: socket).output()
            }
            let result = try begin.result(timeout: 20)
            #expect(result.status == 1 && result.stderr.contains("silent.example"), "\(result)")
            #expect(!Files.exists(directory.file("scratch")))
            server.terminate()
            #expect(try server.result(timeout: 20).succeeded)
        }
    }
}
