import VhostProtocol

/// A program that this server shares memory with, and that says and writes whatever it likes.
///
/// The first byte chooses between its replies and its queue. Each reply stands behind a byte: with
/// the lowest bit the next one is the length of its payload, and the header is the right one;
/// without it header and payload follow as they are. Of the queue the second byte says how often
/// memory changes between two looks, and the rest is what both sides do, a byte and its numbers at
/// a time; the last bytes of all are what the program writes meanwhile.
enum ProgramEntry {
    static func run(_ bytes: [UInt8]) {
        guard bytes.count > 2 else { return }
        if bytes[0] & 1 == 0 {
            replies(bytes.span.extracting(1...))
        } else {
            queue(bytes)
        }
    }

    // MARK: Replies

    private static let memoryBytes = SlotQueueLayout.byteCount + (1 << 20)

    private static func replies(_ input: Span<UInt8>) {
        var opening = FrontEndOpening(memoryBytes: memoryBytes)
        var position = 0
        var messages = 0
        do throws(FrontEndFault) {
            while let message = opening.message {
                messages += 1
                precondition(messages <= 14, "an opening without end")
                precondition(message.bytes.count >= MessageHeader.byteCount)
                guard opening.awaitsReply else {
                    opening.sent()
                    continue
                }
                guard try answer(input, &position, message, &opening) else { return }
            }
        } catch {
            precondition(!error.text.isEmpty)
            return
        }
        precondition(opening.blockBytes >= 512 && opening.blockBytes.nonzeroBitCount == 1)
        precondition(opening.sizeBytes.isMultiple(of: 512))
    }

    /// False: nothing more comes.
    private static func answer(
        _ input: Span<UInt8>, _ position: inout Int, _ message: FrontEndOpening.Message,
        _ opening: inout FrontEndOpening
    ) throws(FrontEndFault) -> Bool {
        guard input.count - position > 1 else { return false }
        let isRight = input[position] & 1 != 0
        position += 1
        let count: Int
        if isRight {
            count = Int(input[position])
            position += 1
            var header = Array(message.bytes[..<8])
            // It is a reply, of the first version.
            header[4] = 5
            header += [UInt8(count), 0, 0, 0]
            let told = try opening.payloadBytes(header.span)
            precondition(told == count)
        } else {
            guard input.count - position >= MessageHeader.byteCount else { return false }
            let header = input.extracting(position..<position + MessageHeader.byteCount)
            position += MessageHeader.byteCount
            count = try opening.payloadBytes(header)
        }
        // Nobody reads more than that.
        precondition(count >= 0 && count <= 512)
        guard input.count - position >= count else { return false }
        try opening.answered(input.extracting(position..<position + count))
        position += count
        return true
    }

    // MARK: The queue

    private static func queue(_ bytes: [UInt8]) {
        let memory = ProgramMemory(changes: Array(bytes.suffix(64)), stride: Int(bytes[1]))
        var queue = SlotQueue(at: GuestPlace(rawValue: 0), address: 1 << 40)
        var isUnderWay = [Bool](repeating: false, count: Int(SlotQueueLayout.slots))
        var steps = bytes.dropFirst(2)
        do throws(SlotQueueFault) {
            while let step = steps.popFirst() {
                switch step & 7 {
                case 0, 1:
                    let slot = queue.put(
                        memory, isWrite: step & 8 != 0, sector: UInt64(step), data: 1 << 40,
                        byteCount: 512)
                    guard let slot else {
                        precondition(!queue.hasRoom)
                        continue
                    }
                    precondition(!isUnderWay[Int(slot)], "a slot that is under way")
                    isUnderWay[Int(slot)] = true
                case 2: _ = queue.publish(memory)
                case 3:
                    for _ in 0..<SlotQueueLayout.entries {
                        guard let done = try queue.take(memory) else { break }
                        precondition(isUnderWay[Int(done.slot)], "an answer to nothing")
                        isUnderWay[Int(done.slot)] = false
                    }
                case 4: _ = queue.wantCalls(memory)
                case 5: _ = queue.hasNext(memory)
                case 6:
                    // As a program does that keeps the rules.
                    guard let slot = steps.popFirst() else { return }
                    memory.finish(slot: UInt16(slot), status: step >> 3)
                default:
                    guard let low = steps.popFirst(), let high = steps.popFirst(),
                        let value = steps.popFirst()
                    else { return }
                    memory.write(Int(low) | Int(high) << 8, value)
                }
                precondition(queue.inFlight == isUnderWay.count { $0 })
                precondition(queue.inFlight <= Int(SlotQueueLayout.slots))
            }
        } catch { precondition(!error.text.isEmpty) }
    }
}

/// Memory that a program writes to between any two looks of this side.
private final class ProgramMemory: ChangingMemory {
    var bytes = [UInt8](repeating: 0, count: Int(SlotQueueLayout.byteCount))
    /// Two bytes of place, two of content, over and over.
    private let changes: [UInt8]
    private var nextChange = 0
    private let stride: Int
    private var accesses = 0
    private var usedIndex: UInt16 = 0

    init(changes: [UInt8], stride: Int) {
        self.changes = changes
        self.stride = stride
    }

    func write(_ place: Int, _ value: UInt8) { bytes[place % bytes.count] = value }

    func finish(slot: UInt16, status: UInt8) {
        let used = Int(SlotQueueLayout.used)
        let element = used + 4 + 8 * Int(usedIndex % SlotQueueLayout.entries)
        let head = 3 * slot
        bytes[element] = UInt8(truncatingIfNeeded: head)
        bytes[element + 1] = UInt8(truncatingIfNeeded: head >> 8)
        if slot < SlotQueueLayout.slots {
            let request = SlotQueueLayout.requests + UInt64(slot) * SlotQueueLayout.requestBytes
            bytes[Int(request) + 16] = status
        }
        usedIndex &+= 1
        bytes[used + 2] = UInt8(truncatingIfNeeded: usedIndex)
        bytes[used + 3] = UInt8(truncatingIfNeeded: usedIndex >> 8)
    }

    func change() {
        accesses += 1
        guard stride > 0, accesses.isMultiple(of: stride), changes.count >= 4 else { return }
        if nextChange + 4 > changes.count { nextChange = 0 }
        let place = Int(changes[nextChange]) | Int(changes[nextChange + 1]) << 8
        write(place, changes[nextChange + 2])
        write(place + 1, changes[nextChange + 3])
        nextChange += 4
    }

    func segment(at address: UInt64, byteCount: UInt64) -> GuestSegment? { nil }
}
