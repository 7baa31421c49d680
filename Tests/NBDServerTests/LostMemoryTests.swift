import IORing
import Synchronization
import SystemLayer
import Testing

@testable import NBDServer
@testable import ServerInterface
@testable import Upstream

/// What an upstream was asked for.
private final class Asked: Sendable {
    private let list = Mutex<[UpstreamRequest]>([])
    var requests: [UpstreamRequest] { list.withLock { $0 } }
    func note(_ message: UpstreamMessage) {
        if case .ask(_, let request) = message { list.withLock { $0.append(request) } }
    }
}

/// Memory shared with a program, which the machine has had no room for.
private final class LostMemory: RunLender {
    var isMemoryGone: Bool { true }
    func giveBack(_ page: Int, _ pages: Int) {}
}

/// Backup reads whose bytes lie in memory that is shared with a program.
@Suite struct LostMemoryTests {
    @Test("P2: a backup's read is asked for again when the memory with its bytes is gone")
    func askedAgain() async throws {
        let fixture = try await ServerFixture()
        _ = try await fixture.server.listenLive(
            .unix(path: fixture.path("live"), mode: 0o600), security: .plaintext)
        let asked = Asked()
        let source = try UpstreamSource(
            number: -2,
            UpstreamAddress(place: .unix(path: fixture.path("live")), name: "vm1/vda"),
            readOnly: false,
            UpstreamTerms(patienceMilliseconds: 5_000, attemptMilliseconds: 5_000),
            post: { asked.note($0) }, onClose: {}, onEnd: {})
        // Nobody else takes its messages.
        let shared = try ServerShared(
            RingLayout(rings: 1, servesJobs: true), ServerConfiguration(rings: 1),
            security: SecurityStore(SecurityConfiguration()), isSimulated: true)
        shared.upstreams.add(source, home: 0)
        var io = try KernelIO(index: 1, shared: shared)
        var arena = try BufferArena(capacityBytes: 64 << 10)
        var completions: [Completion] = []
        completions.reserveCapacity(8)

        io.ask(FileHandle(-2), .read, 4096, 8192, tag: 7, offset: 512)
        let first = try #require(asked.requests.first)
        let lent = try #require(first.borrower)
        lent.borrow(SharedRun(LostMemory(), page: 0, pages: 2, address: lent.address))
        io.upstreamAnswered(UpstreamAnswer(tag: 7, result: 8192, bytes: lent, extents: []))
        io.drain(into: &completions, &arena)
        #expect(completions.isEmpty)
        let again = try #require(asked.requests.count == 2 ? asked.requests[1] : nil)
        #expect(again.command.position == 4096 && again.command.count == 8192)
        let bytes = try #require(again.bytes)
        #expect(bytes !== lent)
        io.upstreamAnswered(UpstreamAnswer(tag: 7, result: 8192, bytes: bytes, extents: []))
        io.drain(into: &completions, &arena)
        #expect(completions.map(\.tag) == [7] && completions.map(\.result) == [8192])

        // Nobody is left to ask.
        completions.removeAll(keepingCapacity: true)
        io.ask(FileHandle(-2), .read, 0, 4096, tag: 8, offset: 0)
        shared.upstreams.remove(-2)
        let last = try #require(asked.requests.last?.borrower)
        last.borrow(SharedRun(LostMemory(), page: 0, pages: 1, address: last.address))
        io.upstreamAnswered(UpstreamAnswer(tag: 8, result: 4096, bytes: last, extents: []))
        io.drain(into: &completions, &arena)
        #expect(completions.map(\.result) == [-Errno.io])
        source.release()
        await fixture.close()
    }
}
