import Foundation
import Glibc
import ServerInterface
import Synchronization
import SystemLayer
import Testing

@testable import Upstream

/// What an asker was told.
private final class Told: Sendable {
    private let list = Mutex<[Int32]>([])
    var results: [Int32] { list.withLock { $0 } }
    func note(_ result: Int32) { list.withLock { $0.append(result) } }
}

/// A program that takes its time to end.
private final class EndlessProgram: Adapter {
    let address: UpstreamAddress
    let mayEnd = Latch(count: 1)

    init(_ address: UpstreamAddress) { self.address = address }

    var sharedSocket: String? { nil }
    var zeroingUnit: UInt64 { 0 }
    var before: ImageState { ImageState(files: 0, changed: 0) }
    func ensureRuns(milliseconds: Int32) throws(AdapterFault) {}
    func takeProblem() -> String? { nil }
    func takeSharingRefusal() -> String? { nil }
    func end(milliseconds: Int32) -> ImageState? { nil }
    func stop(whenOver: @escaping @Sendable () -> Void) {
        _ = mayEnd.wait(milliseconds: 30_000)
        whenOver()
    }
}

/// What is told to the library that speaks NBD, and what it makes of that.
@Suite struct UpstreamLinkTests {
    @Test(
        "P2: a large write goes on although a connection was said to have something to read, and had not"
    )
    func spuriousInput() throws {
        let server = try StandInServer()
        let link = try UpstreamLink(
            server.address, until: MonotonicClock.now() + 5_000_000_000,
            patienceMilliseconds: 5_000, isInOrder: false)
        defer { link.close() }
        let answers = AnswerQueue()
        // More than a socket holds.
        var command = UpstreamCommand(.write, count: 32 << 20, asker: .loop(tag: 1))
        let bytes = UnsafeMutableRawPointer.allocate(byteCount: command.count, alignment: 4096)
        defer { unsafe bytes.deallocate() }
        unsafe bytes.initializeMemory(as: UInt8.self, repeating: 7, count: command.count)
        command.address = UInt(bitPattern: bytes)
        #expect(link.send(command, asFlush: false, 0, to: answers, durable: false) == 0)
        #expect(link.wantsOutput && link.wantsInput)
        link.notify(output: false)
        #expect(link.wantsOutput)
        server.goOn()
        let deadline = MonotonicClock.now() + 5_000_000_000
        while answers.answers.isEmpty, !link.isBroken, MonotonicClock.now() < deadline {
            var events: Int16 = 0
            if link.wantsInput { events |= Int16(POLLIN) }
            if link.wantsOutput { events |= Int16(POLLOUT) }
            var request = pollfd(fd: link.descriptor, events: events, revents: 0)
            // SAFETY: the request is live for the call.
            guard unsafe poll(&request, 1, 100) > 0 else { continue }
            if request.revents & Int16(POLLOUT) != 0 { link.notify(output: true) }
            if request.revents & Int16(POLLIN) != 0 { link.notify(output: false) }
        }
        #expect(answers.answers.map(\.errno) == [0])
    }

    @Test("P6: memory is not shared with a program where that would take descriptors from others")
    func fewDescriptors() throws {
        let server = try StandInServer()
        guard case .unix(let path) = server.address.place else { return }
        let fault = #expect(throws: UpstreamFault.self) {
            _ = try SharedQueue(
                path, until: MonotonicClock.now() + 300_000_000, descriptorsEnd: 3)
        }
        #expect(fault?.detail.contains("LimitNOFILE") == true, "\(String(describing: fault))")
    }

    @Test("P3: a ring that gives an image back last does not wait for the image's program")
    func lastHolder() throws {
        let server = try StandInServer()
        server.goOn()
        let program = EndlessProgram(server.address)
        let ended = Latch(count: 1)
        let source = try UpstreamSource(
            number: -2, server.address, readOnly: false,
            UpstreamTerms(patienceMilliseconds: 5_000, attemptMilliseconds: 5_000),
            adapter: program, post: { _ in }, onClose: {}, onEnd: { ended.arrive() })
        let returned = Latch(count: 1)
        try WorkerThread.start(name: "ring") {
            WorkerThread.serveMany()
            source.release()
            returned.arrive()
        }
        #expect(returned.wait(milliseconds: 5_000))
        #expect(!ended.wait(milliseconds: 0) && WorkerThread.mayWait)
        program.mayEnd.arrive()
        #expect(ended.wait(milliseconds: 5_000))
    }

    @Test("P2: a late request does not open an upstream again that was given up")
    func strayAsk() throws {
        let server = try StandInServer()
        server.goOn()
        let source = try UpstreamSource(
            number: -2, server.address, readOnly: false,
            UpstreamTerms(patienceMilliseconds: 5_000, attemptMilliseconds: 5_000),
            post: { _ in }, onClose: {}, onEnd: {})
        var ring = UpstreamRing()
        ring.open(source, now: MonotonicClock.now())
        let wasOpen = ring.has(-2)
        #expect(wasOpen)
        source.release()
        ring.take(.close(-2), now: MonotonicClock.now()) { _ in source }
        let told = Told()
        let request = UpstreamRequest(.flush) { result, _ in told.note(result) }
        // It was found a moment before it was taken out.
        ring.take(.ask(-2, request), now: MonotonicClock.now()) { _ in source }
        let isEmpty = ring.isEmpty
        #expect(isEmpty && told.results == [-Errno.canceled])
        ring.open(source, now: MonotonicClock.now())
        let isOpen = ring.has(-2)
        #expect(!isOpen)
        Thread.sleep(forTimeInterval: 0.2)
        // The first may have gone before the server took it.
        #expect(server.connections <= 1)
    }
}
