import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// libvirt's Python bindings, 9 and 11: what tools are written with.
    @Suite struct LibvirtPythonTests {
        private func run(
            _ client: LibvirtClient, _ arguments: [String]
        ) throws -> Command {
            let script = URL(filePath: #filePath).deletingLastPathComponent()
                .deletingLastPathComponent().appending(path: "clients/libvirt-python").path
            return try Command(
                try client.python(), [script] + arguments, environment: LibvirtClient.environment)
        }

        @Test("a tool's calls, one after the other", arguments: LibvirtClient.allCases)
        func tool(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            try run(client, ["tool", fixture.server.libvirtURI, fixture.directory.path])
                .result().output()
            try fixture.server.stop()
        }

        @Test("errors have the codes and domains that tools branch on",
            arguments: LibvirtClient.allCases)
        func errors(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            try run(client, ["errors", fixture.server.libvirtURI]).result().output()
            try fixture.server.stop()
        }

        @Test("callbacks are called, and no longer when they are taken back",
            arguments: LibvirtClient.allCases)
        func events(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            try run(client, ["events", fixture.server.libvirtURI, fixture.directory.path])
                .result().output()
            try fixture.server.stop()
        }

        @Test("a call that hangs for seconds leaves its connection alive, and other calls on it",
            arguments: LibvirtClient.allCases)
        func keepalive(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client, options: ["--storage-timeout", "6"])
            let hung = try TinyFileSystem(mebibytes: 8)
            try hung.freeze()
            let command = try run(
                client, ["keepalive", fixture.server.libvirtURI, hung.path + "/scratch"])
            let result = try command.result(timeout: 60)
            try hung.thaw()
            print(try result.output())
            try fixture.server.stop()
        }
    }
}
