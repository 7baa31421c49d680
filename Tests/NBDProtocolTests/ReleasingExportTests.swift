import NBDProtocol
import Testing

@Suite("Exports whose clients let go of what they have")
struct ReleasingExportTests {
    private func verdict(_ command: Command, _ flags: UInt16 = 0) -> RequestVerdict {
        let export = ExportDescription(
            name: "x", sizeBytes: 1 << 20, flags: [.sendTrim, .sendFlush, .sendFUA],
            takesWrites: false)
        return RequestRules(Negotiated(export: export, replyMode: .structured, contexts: []))
            .check(
                RawRequest(flags: flags, type: command.rawValue, cookie: 1, offset: 0, length: 512))
    }

    private func refusal(_ verdict: RequestVerdict) -> WireError? {
        if case .refuse(let refusal) = verdict { refusal.error } else { nil }
    }

    @Test("TRIM is taken, WRITE is refused as on a read-only export, zeroing is not offered")
    func rules() {
        for command in [Command.trim, .read, .flush, .cache] {
            guard case .accept = verdict(command) else {
                Issue.record("\(command) is refused")
                continue
            }
        }
        #expect(refusal(verdict(.write)) == .notPermitted)
        #expect(refusal(verdict(.writeZeroes)) == .invalidArgument)
        #expect(refusal(verdict(.trim, 1 << 1)) == .invalidArgument)
    }
}
