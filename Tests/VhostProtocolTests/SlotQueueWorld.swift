import Testing
import VhostClient

@testable import VhostProtocol

/// A queue of slots and a device that sleep until they are told, in one order of steps out of all;
/// stores of both wait as long as they may.
private final class SlotQueueWorld {
    struct Setting: Sendable {
        var requests: Int
        /// Broken on purpose.
        var hasFences = true
        var looksAgain = true
    }

    private enum Step { case take, finish, call, arm, fence, recheck, asleep }

    private let setting: Setting
    private let choose: (Int) -> Int
    private let memory: TwoSidedMemory
    private let side: DriverSide
    private var queue = SlotQueue(at: GuestPlace(rawValue: 0), address: 0)
    private var step = Step.arm
    private var seen: UInt16 = 0
    private var finished: UInt16 = 0
    private var isKicked = false
    private var isCalled = false
    private var sent = 0
    private var over = 0

    init(_ setting: Setting, choose: @escaping (Int) -> Int) {
        self.setting = setting
        self.choose = choose
        memory = TwoSidedMemory(
            Int(SlotQueueLayout.byteCount), isLazy: true, hasFences: setting.hasFences)
        side = DriverSide(memory)
        let entries = UInt64(SlotQueueLayout.entries)
        memory.shared = [
            SlotQueueLayout.available + 2, SlotQueueLayout.available + 4 + 2 * entries,
            SlotQueueLayout.used + 2, SlotQueueLayout.used + 4 + 8 * entries,
        ]
        memory.onAccess = { [unowned self] in interrupt() }
    }

    /// Whether everything that was asked was done, and is known.
    func run() throws -> Bool {
        while sent < setting.requests || over < sent {
            if sent < setting.requests {
                _ = queue.put(memory, isWrite: false, sector: 0, data: 0, byteCount: 512)
                sent += 1
                if queue.publish(memory) {
                    // A kick is a system call: it takes along what was stored before.
                    memory.drainDevice()
                    isKicked = true
                }
            }
            while try queue.take(memory) != nil { over += 1 }
            guard over < sent else { continue }
            let hasSome = queue.wantCalls(memory)
            if hasSome, setting.looksAgain { continue }
            // Asleep until it is called; what was stored reaches memory meanwhile.
            memory.drainDevice()
            while !isCalled, canDrive { drive() }
            guard isCalled else { return false }
            isCalled = false
        }
        return true
    }

    private func interrupt() { while canDrive, choose(2) == 1 { drive() } }

    // MARK: The device

    private var canDrive: Bool { step != .asleep || isKicked }

    private func read16(_ address: UInt64) -> UInt16 {
        let bytes = side.read(address, 2)
        return UInt16(bytes[0]) | UInt16(bytes[1]) << 8
    }
    private func write16(_ value: UInt16, _ address: UInt64) {
        side.write([UInt8(truncatingIfNeeded: value), UInt8(value >> 8)], address)
    }

    private func drive() {
        let entries = UInt64(SlotQueueLayout.entries)
        let available = SlotQueueLayout.available
        let used = SlotQueueLayout.used
        switch step {
        case .asleep:
            isKicked = false
            step = .take
        case .take:
            guard read16(available + 2) != seen else { return step = .arm }
            let head = read16(available + 4 + UInt64(seen % 512) * 2)
            side.write(
                [UInt8(head & 255), UInt8(head >> 8), 0, 0], used + 4 + UInt64(finished) * 8)
            side.write([0], SlotQueueLayout.requests + UInt64(head / 3) * 32 + 16)
            seen += 1
            finished += 1
            step = .finish
        case .finish:
            write16(finished, used + 2)
            side.fence()
            step = .call
        case .call:
            if read16(available + 4 + 2 * entries) == finished - 1 { isCalled = true }
            step = .take
        case .arm:
            write16(seen, used + 4 + 8 * entries)
            step = .fence
        case .fence:
            side.fence()
            step = .recheck
        case .recheck: step = read16(available + 2) != seen ? .take : .asleep
        }
    }
}

@Suite("No wake-up is lost between a queue of slots and its device")
struct SlotQueueWakeTests {
    private static func walk(_ setting: SlotQueueWorld.Setting) throws -> (runs: Int, isLost: Bool)
    {
        var choices = Choices()
        var runs = 0
        repeat {
            let world = SlotQueueWorld(setting) { choices.choose($0) }
            runs += 1
            guard try world.run() else { return (runs, true) }
        } while choices.advance() && runs < 20_000
        return (runs, false)
    }

    @Test("in every order of steps", arguments: 1...2)
    func everyOrder(requests: Int) throws {
        let result = try Self.walk(.init(requests: requests))
        #expect(!result.isLost, "lost in run \(result.runs)")
        #expect(result.runs > 20)
    }

    @Test("and these orders find one that leaves something out")
    func canaries() throws {
        #expect(try Self.walk(.init(requests: 2, hasFences: false)).isLost)
        #expect(try Self.walk(.init(requests: 2, looksAgain: false)).isLost)
    }
}
