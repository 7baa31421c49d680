import Foundation
import Glibc
import TestSupport
import Testing

extension PointInTimeSuite {
    /// The server is killed, or its state directory fails, at every single step of a change of a
    /// domain.
    @Suite struct DomainFaultTests {
        /// A change of a domain with disks `vda` and `vdb`.
        enum Change: String, CaseIterable {
            case define, redefine, attach, detach, resize, undefine
        }

        /// Every step when the walk is full, else every fifth; the seed says with which it begins.
        private static let stride = RunSettings.isFullWalk ? 1 : 5

        private static func firstStep() -> Int {
            let seed = RunSettings.seed
            print("seed \(seed)")
            return 1 + Int(seed % UInt64(stride))
        }

        /// More than any change takes.
        private static let stepsMax = 120

        /// A server with the domain, checkpoint `c1`, and a change of `vda` since.
        private final class Rig {
            static let written = 1 << 20
            let plan: FaultPlan
            let server: ServerUnderTest
            let change: Change
            var before: [String]

            init(_ change: Change) throws {
                self.change = change
                let directory = try TemporaryDirectory()
                plan = try FaultPlan(under: directory.path + "/state")
                for name in ["vda", "vdb", "vdc"] {
                    try Images.sparse(directory.path + "/" + name, bytes: 16 << 20)
                }
                server = try ServerUnderTest(
                    options: ["--rings", "1"], in: directory, environment: plan.environment)
                before = []
                try Files.write(domain("vdb"), to: file("domain.xml"))
                try Files.write(domain("vdc"), to: file("other.xml"))
                guard change != .define else { return }
                try server.cli(["define", file("domain.xml")]).output()
                try server.cli(["checkpoint-create-as", "vm1", "c1"]).output()
                try NBDClient(server.liveURI("vm1", "vda")).write([7], at: Self.written)
                before = seen
            }

            func file(_ name: String) -> String { server.directory.file(name) }

            /// The XML of the domain whose second disk has this source; of one uuid, so that what
            /// is seen of two domains is the same.
            private func domain(_ second: String) -> String {
                DomainDescription(
                    "vm1",
                    [DiskDescription("vda", file("vda")), DiskDescription("vdb", file(second))]
                ).xml.replacing(
                    "<name>", with: "<uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid><name>")
            }

            func make() throws -> CommandResult {
                switch change {
                case .define: try server.cli(["define", file("domain.xml")])
                case .redefine: try server.cli(["define", file("other.xml")])
                case .attach: try server.cli(["attach-disk", "vm1", file("vdc"), "vdc"])
                case .detach: try server.cli(["detach-disk", "vm1", "vdb"])
                case .resize: try server.cli(["blockresize", "vm1", "vdb", "32MiB"])
                case .undefine: try server.cli(["undefine", "vm1", "--checkpoints-metadata"])
                }
            }

            /// The domain as its users see it; empty when it is not there.
            var seen: [String] {
                guard let text = try? server.cli(["dumpxml", "vm1"]), text.succeeded,
                    let disks = try? server.cli(["domblklist", "vm1"])
                else { return [] }
                // Columns are as wide as the paths.
                return [text.stdout, disks.stdout].map { text in
                    text.replacing(server.directory.path, with: "DIR").replacing("--", with: "")
                        .split(whereSeparator: \.isWhitespace).filter { $0 != "-" }
                        .joined(separator: " ")
                }
            }

            /// The incremental backup since `c1` has what was written.
            func expectChain(_ place: String) throws {
                if change == .undefine {
                    // All of its checkpoints were to go.
                    let kept = try server.cli(["checkpoint-list", "vm1", "--name"]).output()
                    guard kept.contains("c1") else { return }
                }
                let job = try server.begin("vm1", disks: ["vda"], tag: "inc", incremental: "c1")
                let export = try job.export("vda")
                let context = "qemu:dirty-bitmap:" + (export.bitmap ?? "")
                let client = try NBDClient(export.uri, .contexts(context))
                let isDirty = try client.map(context).contains {
                    $0.isDirty && $0.offset <= Self.written && Self.written < $0.end
                }
                #expect(isDirty, "\(place): a change of vda is missed")
                try client.disconnect()
                try server.end("vm1", job)
            }

            /// Starts the server again and looks whether the domain is one of these, and whole.
            func expectAfterStart(_ place: String, _ expected: [[String]]) throws {
                try server.start()
                let after = seen
                #expect(expected.contains(after), "\(place): \(after)")
                if change != .define, !after.isEmpty { try expectChain(place) }
                // No file is left that the server has to tell of.
                let list = try server.cli(["list"])
                #expect(list.succeeded && list.stderr.isEmpty, "\(place): \(list)")
                try server.stop()
            }
        }

        /// The domain before the change and after it.
        private func outcomes(_ change: Change) throws -> (old: [String], new: [String]) {
            let rig = try Rig(change)
            try rig.make().output()
            let new = rig.seen
            try rig.server.stop()
            return (rig.before, new)
        }

        @Test(
            "P3: killed at any step of a change, the domain is old or new, other chains are whole",
            arguments: Change.allCases)
        func killed(_ change: Change) throws {
            let (old, new) = try outcomes(change)
            var step = Self.firstStep()
            while step < Self.stepsMax {
                let rig = try Rig(change)
                try rig.plan.arm(.killed, at: step)
                let result = try rig.make()
                // What is done after the answer counts as well.
                if result.succeeded { Thread.sleep(forTimeInterval: 0.05) }
                let steps = rig.plan.disarm()
                // A server that is ended by a step is on its way out.
                if steps < step { try rig.server.stop() } else { rig.server.kill() }
                try rig.expectAfterStart(
                    "\(change), step \(step)", result.succeeded ? [new] : [old, new])
                if steps < step { break }
                step += Self.stride
            }
            #expect(step > 5 && step < Self.stepsMax)
        }

        @Test(
            "a change that one failing call refuses leaves the domain as it was, now and later",
            arguments: Change.allCases)
        func fails(_ change: Change) throws {
            let (old, new) = try outcomes(change)
            var step = Self.firstStep()
            while step < Self.stepsMax {
                let rig = try Rig(change)
                try rig.plan.arm(.fails(errno: EIO), at: step)
                let result = try rig.make()
                let steps = rig.plan.disarm()
                let place = "\(change), step \(step): \(result)"
                let expected = result.succeeded ? new : old
                #expect(rig.seen == expected, "\(place)")
                rig.server.kill()
                try rig.expectAfterStart(place, [expected])
                if steps < step { break }
                step += Self.stride
            }
            #expect(step > 5 && step < Self.stepsMax)
        }
    }
}
