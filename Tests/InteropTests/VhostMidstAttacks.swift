import Foundation
import Synchronization
import TestSupport
import VhostClient
import VhostFrontEnd

extension FrontEnd {
    /// Uses every extension of the protocol that is offered.
    fileprivate func useEverything() throws {
        try socket.send(.setProtocolFeatures(try socket.ask(.getProtocolFeatures).word))
    }

    /// Has a read of 4 KiB available once more, and wants to be called for it.
    fileprivate func offerRead() {
        let next = memory.read16(ring.available + 2) &+ 1
        let place = UInt64((next &- 1) % options.queueSize)
        memory.write16(0, ring.available + 4 + 2 * place)
        memory.write16(next &- 1, ring.available + 4 + 2 * UInt64(options.queueSize))
        memory.write16(next, ring.available + 2)
        memory.fence()
        queues[0].kick.signal()
    }

    /// Whether all that was offered has been given back, waiting a second at most.
    @discardableResult
    fileprivate func awaitAnswers() -> Bool {
        for _ in 0..<1000 {
            if memory.read16(ring.used + 2) == memory.read16(ring.available + 2) { return true }
            usleep(1000)
        }
        return false
    }
}

extension VhostAttack {
    /// A thread that does something again and again until its owner goes.
    private final class Again: Sendable {
        private let isOver = Atomic<Bool>(false)
        func run(_ body: @escaping @Sendable () -> Void) {
            Thread.detachNewThread { [self] in
                while !isOver.load(ordering: .relaxed) { body() }
            }
        }
        func stop() { isOver.store(true, ordering: .relaxed) }
    }

    /// What a front-end may do while its guest's requests are in flight.
    static let midst = [
        VhostAttack("memory is replaced under requests, fifty times", .any) { frontEnd in
            frontEnd.describeRead()
            for _ in 0..<50 {
                frontEnd.offerRead()
                try frontEnd.shareMemory()
                guard frontEnd.awaitAnswers() else { throw TestFailure("a read is lost") }
            }
        },
        VhostAttack("regions come and go under requests, two hundred times", .any) { frontEnd in
            try frontEnd.useEverything()
            frontEnd.describeRead()
            let more = ClientRegion(guest: 1 << 40, size: 65_536, user: 1 << 50)
            for _ in 0..<200 {
                frontEnd.offerRead()
                try frontEnd.socket.command(.addRegion(more), [frontEnd.memory.descriptor])
                try frontEnd.socket.command(.removeRegion(more))
                guard frontEnd.awaitAnswers() else { throw TestFailure("a read is lost") }
            }
        },
        VhostAttack("a reset in the midst of requests", .any) { frontEnd in
            try frontEnd.useEverything()
            frontEnd.describeRead()
            frontEnd.offerRead()
            try frontEnd.socket.command(.resetDevice)
            frontEnd.queues[0].kick.signal()
        },
        VhostAttack("pages are taken away under requests", .any) { frontEnd in
            let memory = frontEnd.memory.descriptor
            let start = frontEnd.dataStart
            let again = Again()
            again.run { memory.punch(start + 4096, 4096) }
            frontEnd.describeRead()
            for _ in 0..<50 {
                frontEnd.offerRead()
                guard frontEnd.awaitAnswers() else { throw TestFailure("a read is lost") }
            }
            again.stop()
            // The rings as well: the queue is as good as new, or broken.
            memory.punch(0, Int(start))
            frontEnd.queues[0].kick.signal()
        },
        VhostAttack("one event is kick and call", .any) { frontEnd in
            try frontEnd.socket.command(.setCall(0), [frontEnd.queues[0].kick])
            frontEnd.describeRead()
            for _ in 0..<20 {
                frontEnd.offerRead()
                guard frontEnd.awaitAnswers() else { throw TestFailure("a read is lost") }
            }
        },
        VhostAttack("a kick of which each read takes one of a million", .any) { frontEnd in
            let kick = try Descriptor.semaphore()
            try frontEnd.socket.command(.setKick(0), [kick])
            kick.signal(1_000_000)
            Thread.sleep(forTimeInterval: 0.2)
        },
        VhostAttack("a call that is full, and waits every other moment", .any) { frontEnd in
            let call = frontEnd.queues[0].call
            call.take()
            call.signal(.max - 1)
            let again = Again()
            again.run {
                call.setBlocking(true)
                call.setBlocking(false)
            }
            frontEnd.describeRead()
            for _ in 0..<2000 {
                frontEnd.offerRead()
                guard frontEnd.awaitAnswers() else { throw TestFailure("a read is lost") }
            }
            again.stop()
        },
    ]

    /// Messages at the wrong moment, and numbers that are too large.
    static let late = [
        VhostAttack("a front-end that says nothing", .any, isRunning: false) { _ in },
        VhostAttack("an area for 65,535 queues", .refused, isRunning: false) {
            try $0.agreeWithoutArea()
            try $0.socket.send(.getInflight(queues: .max, size: .max))
        },
        VhostAttack("areas that nobody takes", .any, isRunning: false) {
            try $0.agreeWithoutArea()
            $0.socket.descriptor.setBlocking(false)
            for _ in 0..<2000 {
                do { try $0.socket.send(.getInflight(queues: 256, size: 1024)) } catch { break }
            }
        },
        VhostAttack("another size for a queue that runs", .refused) {
            try $0.socket.send(ClientMessage.setSize(0, 64).acknowledged)
        },
        VhostAttack("other features while a queue runs", .refused) {
            try $0.socket.send(ClientMessage.setFeatures(1 << 32).acknowledged)
        },
        VhostAttack("a write to the configuration space", .refused) {
            try $0.socket.send(ClientMessage.setConfig(offset: 0, [1, 2, 3, 4]).acknowledged)
        },
        VhostAttack("queue 256 of 256", .refused) {
            try $0.socket.send(ClientMessage.setSize(256, 128).acknowledged)
        },
        VhostAttack("a kick for a queue beyond eight bits", .refused) {
            try $0.socket.send(
                ClientMessage.setKick(1 << 9).acknowledged, [$0.queues[0].kick])
        },
        VhostAttack("huge pages that may not be there", .any, isRunning: false) {
            try $0.agree()
            try $0.socket.send(
                ClientMessage.setMemory([ClientRegion(guest: 0, size: 64 << 20, user: 0)])
                    .acknowledged, [.hugeFile(bytes: 64 << 20)])
        },
        VhostAttack("calls and kicks that are replaced a thousand times", .any) { frontEnd in
            for _ in 0..<500 {
                try frontEnd.socket.command(.setCall(0), [frontEnd.queues[0].call])
                try frontEnd.socket.command(.setKick(0), [frontEnd.queues[0].kick])
            }
            frontEnd.describeRead()
            frontEnd.offerRead()
            guard frontEnd.awaitAnswers() else { throw TestFailure("a read is lost") }
        },
        VhostAttack("the same table of memory, five hundred times", .any) { frontEnd in
            for _ in 0..<500 { try frontEnd.shareMemory() }
        },
    ]
}
