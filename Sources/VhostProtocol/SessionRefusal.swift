/// Why a message is refused.
package enum SessionRefusal: Error, Equatable, Sendable {
    /// The message is malformed.
    case message(MessageFault)
    /// The memory it describes is unacceptable.
    case memory(MemoryRefusal)
    /// Features that are not offered.
    case featuresNotOffered(UInt64)
    /// Extensions of the protocol that are not offered.
    case protocolFeaturesNotOffered(UInt64)
    /// A change of features while a queue is started.
    case featuresInUse
    /// The request needs a feature that was not negotiated.
    case notNegotiated(RequestCode)
    /// A queue index out of range.
    case unknownQueue(Int)
    /// A size that is no power of two up to `VhostLimits.queueSizeMax`.
    case queueSize(queue: Int, UInt32)
    /// Ring address flags that are not offered.
    case addressFlags(queue: Int, UInt32)
    /// A change to a queue that has to be stopped first.
    case queueRuns(Int)
    /// A kick descriptor for a queue without size, addresses or negotiated features.
    case queueNotSetUp(Int)
    /// A request to poll the queue instead of waiting for kicks.
    case kickWithoutDescriptor(queue: Int)
    /// A ring that is misaligned or not inside one region.
    case ringOutsideMemory(queue: Int, address: UInt64)
    /// A range outside the configuration space, or unknown flags.
    case configRange(offset: UInt32, byteCount: Int)
    /// A write to the configuration space, which is read-only.
    case configReadOnly
    /// An in-flight area with bad queue numbers, too small, or misaligned.
    case inflightShape(InflightDescription)
    /// A change of the in-flight area while a queue is started.
    case inflightInUse
    /// A queue that the in-flight area has no room for.
    case inflightTooSmall(queue: Int)
    /// The driver's action failed; why, with its value.
    case failed(RequestCode, String)

    /// One line for a log: what was wrong, and with which value.
    package var text: String {
        switch self {
        case .message(let fault): fault.text
        case .memory(let refusal): refusal.text
        case .featuresNotOffered(let bits):
            "features 0x\(String(bits, radix: 16)) were not offered"
        case .protocolFeaturesNotOffered(let bits):
            "protocol features 0x\(String(bits, radix: 16)) were not offered"
        case .featuresInUse: "features cannot change while a queue runs"
        case .notNegotiated(let request): "\(request) without the protocol feature that it needs"
        case .unknownQueue(let queue): "there is no queue \(queue)"
        case .queueSize(let queue, let size):
            "queue \(queue) of \(size) entries: a power of two up to"
                + " \(VhostLimits.queueSizeMax) is allowed"
        case .addressFlags(let queue, let flags):
            "addresses of queue \(queue) with flags 0x\(String(flags, radix: 16))"
        case .queueRuns(let queue): "queue \(queue) runs: stop it first"
        case .queueNotSetUp(let queue):
            "a kick for queue \(queue), which has no size, no addresses or no features"
        case .kickWithoutDescriptor(let queue):
            "queue \(queue) without a kick's descriptor: polling is not offered"
        case .ringOutsideMemory(let queue, let address):
            "queue \(queue) has a ring at 0x\(String(address, radix: 16)),"
                + " which is not aligned or not in one region of the memory that the machine shares:"
                + " it has to share all of it (qemu: memory-backend-memfd with share=on)"
        case .configRange(let offset, let count):
            "\(count) bytes at \(offset) of the configuration space"
        case .configReadOnly: "the configuration space is read-only"
        case .inflightShape(let area):
            "an in-flight area of \(area.byteCount) bytes at \(area.offset) for"
                + " \(area.queueCount) queues of \(area.queueSize)"
        case .inflightInUse: "the in-flight area cannot change while a queue runs"
        case .inflightTooSmall(let queue): "the in-flight area has no room for queue \(queue)"
        case .failed(let request, let reason): "\(request): \(reason)"
        }
    }
}
