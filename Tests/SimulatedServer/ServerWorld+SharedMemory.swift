import Glibc
import IORing
import Simulation
import SystemLayer

/// What a descriptor is that a front-end and the server have shared.
enum SharedHandle {
    case event(SharedEvent)
    /// A file of the kernel's own, in memory.
    case file
}

/// Messages with descriptors, events and memory of guests, as the kernel has them.
extension ServerWorld {
    /// Descriptors of events; lower ones are the kernel's.
    private static let firstEvent: Int32 = 1 << 28

    // MARK: Descriptors

    func share(_ event: SharedEvent) -> Int32 {
        lastHandle += 1
        let number = Self.firstEvent + lastHandle
        handles[number] = .event(event)
        return number
    }

    func share(_ file: SharedFile) -> Int32 {
        let number = file.another
        handles[number] = .file
        return number
    }

    func event(_ number: Int32) -> SharedEvent? {
        if case .event(let event) = handles[number] { event } else { nil }
    }

    func close(descriptor number: Int32) {
        let handle = handles.removeValue(forKey: number)
        if number < Self.firstEvent {
            // An in-flight area of the server's own is none of these.
            _ = Glibc.close(number)
        } else if handle == nil {
            fail("P6: event \(number - Self.firstEvent) is closed twice")
        }
    }

    /// The process that had them is gone.
    func closeHandles() {
        for number in handles.keys.sorted() { close(descriptor: number) }
        handles = [:]
    }

    /// P6: descriptors that came with messages, and belong to nobody any more.
    func checkHandles() {
        let unheard = sockets.flatMap(\.messages).flatMap(\.descriptors)
        let left = Set(handles.keys).subtracting(unheard)
        if !left.isEmpty { fail("P6: \(left.count) shared descriptors are open for nobody") }
    }

    // MARK: Messages

    func receiveMessage(
        _ handle: SocketHandle, _ count: Int, _ bytes: inout [UInt8], _ descriptors: inout [Int32]
    ) -> Int {
        guard let socket = socket(handle), !socket.isShut, !socket.isClosed else { return 0 }
        guard let first = socket.messages.first else {
            return socket.isClosedByPeer ? 0 : -Int(Errno.again)
        }
        var take = min(count, first.bytes.count)
        if take > 1, draw.chance(20) { take = 1 + draw.below(take) }
        bytes += first.bytes.prefix(take)
        descriptors += first.descriptors
        socket.messages[0].descriptors = []
        socket.messages[0].bytes.removeFirst(take)
        if socket.messages[0].bytes.isEmpty { socket.messages.removeFirst() }
        return take
    }

    func sendMessage(_ handle: SocketHandle, _ bytes: [UInt8], _ descriptor: Int32?) -> Int {
        guard let socket = socket(handle), !socket.isClosed else {
            fail("a message is sent to socket \(handle.number), which is closed")
            return -Int(Errno.io)
        }
        if socket.isShut || socket.isClosedByPeer { return -32 }
        socket.answers.append(
            SharedMessage(bytes: bytes, descriptors: descriptor.map { [dup($0)] } ?? []))
        return bytes.count
    }

    /// What nobody is going to receive.
    func dropMessages(_ socket: SimulatedSocket) {
        for number in socket.messages.flatMap(\.descriptors) { close(descriptor: number) }
        for number in socket.answers.flatMap(\.descriptors) { _ = Glibc.close(number) }
        socket.messages = []
        socket.answers = []
    }

    // MARK: Events

    /// Kicks that were made are taken, calls are made; true when it is complete.
    func advanceEvent(_ operation: KernelOperation) -> Bool {
        switch operation.kind {
        case .kick(let event):
            guard event.count > 0 else { return false }
            event.count = 0
        case .call(let event): event.count += 1
        default: return false
        }
        operation.result = 8
        return true
    }

    // MARK: Memory

    /// What a write has to write, as it is now.
    func bytes(_ written: WrittenBytes) -> [UInt8] {
        switch written {
        case .arena(let lent): lent.copy()
        case .guest(let ranges): guestBytes.load(ranges)
        }
    }

    /// Bytes that were read come into a guest's memory.
    func fill(_ ranges: [GuestRange], with bytes: ArraySlice<UInt8>, from start: Int) {
        if canary == .answersBeforeFilling {
            return lateFills.append((ranges, Array(bytes), start))
        }
        guestBytes.store(bytes, in: ranges, from: start)
    }

    /// Under a canary: what was put off.
    func fillLate() {
        guard !lateFills.isEmpty, draw.chance(30) else { return }
        let (ranges, bytes, start) = lateFills.removeFirst()
        guestBytes.store(bytes[...], in: ranges, from: start)
    }
}
