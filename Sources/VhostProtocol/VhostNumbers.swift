// The numbers of vhost-user and of virtio's block device, each with its section: "vhost-user" is
// the protocol's own document, "virtio" is version 1.2. Which of them is right at which moment is
// decided by `BackEndSession`, `Virtqueue` and `BlockRules`.

/// Requests of a front-end (vhost-user, "Front-end message types"): those that are answered here.
package enum RequestCode: UInt32, Sendable, BitwiseCopyable, CaseIterable {
    /// GET_FEATURES: which virtio features are offered.
    case getFeatures = 1
    /// SET_FEATURES: which of them are used.
    case setFeatures = 2
    /// SET_OWNER: the start of a session.
    case setOwner = 3
    /// RESET_OWNER: deprecated, changes nothing.
    case resetOwner = 4
    /// SET_MEM_TABLE: all of the guest's memory at once.
    case setMemoryTable = 5
    /// SET_VRING_NUM: size of a queue.
    case setQueueSize = 8
    /// SET_VRING_ADDR: where a queue's rings are.
    case setQueueAddresses = 9
    /// SET_VRING_BASE: the next available index.
    case setQueueBase = 10
    /// GET_VRING_BASE: stops a queue.
    case getQueueBase = 11
    /// SET_VRING_KICK: what says that the guest has made buffers available.
    case setQueueKick = 12
    /// SET_VRING_CALL: what tells the guest of used buffers.
    case setQueueCall = 13
    /// SET_VRING_ERR: what tells the front-end of a broken queue.
    case setQueueError = 14
    /// GET_PROTOCOL_FEATURES: which extensions of the protocol are offered.
    case getProtocolFeatures = 15
    /// SET_PROTOCOL_FEATURES: which of them are used.
    case setProtocolFeatures = 16
    /// GET_QUEUE_NUM: how many queues there may be.
    case getQueueCount = 17
    /// SET_VRING_ENABLE: lets a queue run, or pauses it.
    case setQueueEnable = 18
    /// GET_CONFIG: reads the device's configuration space.
    case getConfig = 24
    /// SET_CONFIG: writes to it.
    case setConfig = 25
    /// GET_INFLIGHT_FD: asks for an area that remembers requests in flight.
    case getInflight = 31
    /// SET_INFLIGHT_FD: hands that area back.
    case setInflight = 32
    /// RESET_DEVICE: stops all queues and forgets what was negotiated with the guest.
    case resetDevice = 34
    /// GET_MAX_MEM_SLOTS: how many regions of memory there may be.
    case getMemorySlots = 36
    /// ADD_MEM_REG: one more region.
    case addRegion = 37
    /// REM_MEM_REG: one region less.
    case removeRegion = 38
}

extension RequestCode: CustomStringConvertible {
    /// Its name in the specification, for logs.
    package var description: String {
        switch self {
        case .getFeatures: "GET_FEATURES"
        case .setFeatures: "SET_FEATURES"
        case .setOwner: "SET_OWNER"
        case .resetOwner: "RESET_OWNER"
        case .setMemoryTable: "SET_MEM_TABLE"
        case .setQueueSize: "SET_VRING_NUM"
        case .setQueueAddresses: "SET_VRING_ADDR"
        case .setQueueBase: "SET_VRING_BASE"
        case .getQueueBase: "GET_VRING_BASE"
        case .setQueueKick: "SET_VRING_KICK"
        case .setQueueCall: "SET_VRING_CALL"
        case .setQueueError: "SET_VRING_ERR"
        case .getProtocolFeatures: "GET_PROTOCOL_FEATURES"
        case .setProtocolFeatures: "SET_PROTOCOL_FEATURES"
        case .getQueueCount: "GET_QUEUE_NUM"
        case .setQueueEnable: "SET_VRING_ENABLE"
        case .getConfig: "GET_CONFIG"
        case .setConfig: "SET_CONFIG"
        case .getInflight: "GET_INFLIGHT_FD"
        case .setInflight: "SET_INFLIGHT_FD"
        case .resetDevice: "RESET_DEVICE"
        case .getMemorySlots: "GET_MAX_MEM_SLOTS"
        case .addRegion: "ADD_MEM_REG"
        case .removeRegion: "REM_MEM_REG"
        }
    }
}

/// Flags of a message's header (vhost-user, "Header").
package enum HeaderFlags {
    /// The bits of the version.
    package static let versionMask: UInt32 = 0b11
    /// The only version there is.
    package static let version: UInt32 = 1
    /// Set in replies.
    package static let reply: UInt32 = 1 << 2
    /// The sender wants an answer to a message that has none (REPLY_ACK).
    package static let needReply: UInt32 = 1 << 3
}

/// The payload of SET_VRING_KICK, CALL and ERR (vhost-user, "Front-end message types").
package enum QueueDescriptorBits {
    /// The queue's index.
    package static let indexMask: UInt64 = 0xff
    /// No descriptor comes with the message.
    package static let noDescriptor: UInt64 = 1 << 8
}

/// Sizes of payloads (vhost-user, "Payload"), in bytes.
package enum PayloadBytes {
    /// A number of 64 bits.
    package static let word = 8
    /// A vring state: index and number.
    package static let queueState = 8
    /// A vring address description.
    package static let queueAddresses = 40
    /// The bytes before the regions of a memory table.
    package static let memoryTableHeader = 8
    /// One region.
    package static let region = 32
    /// A single region with the bytes before it.
    package static let singleRegion = 40
    /// The header before the bytes of the configuration space.
    package static let configHeader = 12
    /// An in-flight description.
    package static let inflight = 20
    /// The same as front-ends send it whose compiler rounds it up.
    package static let inflightRounded = 24
}

/// Extensions of the protocol (vhost-user, "Protocol features").
package struct ProtocolFeatures: OptionSet, Sendable, BitwiseCopyable {
    package let rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }

    /// Several queues.
    package static let multiQueue = ProtocolFeatures(rawValue: 1 << 0)
    /// Every message can be answered.
    package static let replyAck = ProtocolFeatures(rawValue: 1 << 3)
    /// The configuration space is the back-end's.
    package static let config = ProtocolFeatures(rawValue: 1 << 9)
    /// Requests in flight are remembered where they outlive the process.
    package static let inflight = ProtocolFeatures(rawValue: 1 << 12)
    /// RESET_DEVICE.
    package static let resetDevice = ProtocolFeatures(rawValue: 1 << 13)
    /// Regions of memory come and go one by one.
    package static let memorySlots = ProtocolFeatures(rawValue: 1 << 15)

    /// All that is offered.
    package static let offered: ProtocolFeatures = [
        .multiQueue, .replyAck, .config, .inflight, .resetDevice, .memorySlots,
    ]
}

/// Features of the device (virtio 5.2.3), of its queues (virtio 6) and of vhost-user.
package struct DeviceFeatures: OptionSet, Sendable, BitwiseCopyable {
    package let rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }

    /// VIRTIO_BLK_F_SEG_MAX: a request has a limited number of segments.
    package static let segmentsMax = DeviceFeatures(rawValue: 1 << 2)
    /// VIRTIO_BLK_F_RO: the disk is read-only.
    package static let readOnly = DeviceFeatures(rawValue: 1 << 5)
    /// VIRTIO_BLK_F_BLK_SIZE: the logical block is told.
    package static let blockSize = DeviceFeatures(rawValue: 1 << 6)
    /// VIRTIO_BLK_F_FLUSH: there is a cache, and a command that makes it durable.
    package static let flush = DeviceFeatures(rawValue: 1 << 9)
    /// VIRTIO_BLK_F_TOPOLOGY: physical blocks and good sizes are told.
    package static let topology = DeviceFeatures(rawValue: 1 << 10)
    /// VIRTIO_BLK_F_MQ: several queues.
    package static let multiQueue = DeviceFeatures(rawValue: 1 << 12)
    /// VIRTIO_BLK_F_DISCARD.
    package static let discard = DeviceFeatures(rawValue: 1 << 13)
    /// VIRTIO_BLK_F_WRITE_ZEROES.
    package static let writeZeroes = DeviceFeatures(rawValue: 1 << 14)
    /// VIRTIO_F_INDIRECT_DESC: a descriptor may be a table of others.
    package static let indirectDescriptors = DeviceFeatures(rawValue: 1 << 28)
    /// VIRTIO_F_EVENT_IDX: each side says after which index it wants to be told.
    package static let eventIndex = DeviceFeatures(rawValue: 1 << 29)
    /// VHOST_USER_F_PROTOCOL_FEATURES: the protocol has extensions; never seen by a guest.
    package static let protocolFeatures = DeviceFeatures(rawValue: 1 << 30)
    /// VIRTIO_F_VERSION_1: the device is not a legacy one.
    package static let version1 = DeviceFeatures(rawValue: 1 << 32)
}

/// The configuration space of a block device (virtio 5.2.4): offsets of fields, in bytes.
package enum ConfigOffset {
    package static let capacity = 0
    package static let segmentsMax = 12
    package static let blockSize = 20
    package static let physicalBlockExponent = 24
    package static let alignmentOffset = 25
    package static let minimumIO = 26
    package static let optimalIO = 28
    package static let queueCount = 34
    package static let discardSectorsMax = 36
    package static let discardRangesMax = 40
    package static let discardAlignment = 44
    package static let writeZeroesSectorsMax = 48
    package static let writeZeroesRangesMax = 52
    package static let writeZeroesMayUnmap = 56
    /// Where the fields of the features offered here end.
    package static let end = 60
}

/// Types of a request (virtio 5.2.6).
@usableFromInline enum BlockType {
    @inlinable static var read: UInt32 { 0 }
    @inlinable static var write: UInt32 { 1 }
    @inlinable static var flush: UInt32 { 4 }
    @inlinable static var getID: UInt32 { 8 }
    @inlinable static var discard: UInt32 { 11 }
    @inlinable static var writeZeroes: UInt32 { 13 }
}

/// How a request went: its last byte (virtio 5.2.6).
@frozen public enum BlockStatus: UInt8, Sendable, BitwiseCopyable {
    /// VIRTIO_BLK_S_OK.
    case ok = 0
    /// VIRTIO_BLK_S_IOERR.
    case ioError = 1
    /// VIRTIO_BLK_S_UNSUPP.
    case unsupported = 2
}

/// Shapes of a request (virtio 5.2.6).
@usableFromInline enum BlockShape {
    /// What a request begins with: type, a reserved word, sector.
    @inlinable static var headerBytes: UInt64 { 16 }
    /// A range of DISCARD or WRITE_ZEROES: sector, count, flags.
    @inlinable static var rangeBytes: UInt64 { 16 }
    /// The text of GET_ID.
    @inlinable static var idBytes: Int { 20 }
    /// The unit of places and lengths, whatever the logical block is.
    @inlinable static var sectorBytes: UInt64 { 512 }
    /// A range's flag: its blocks may be given back.
    @inlinable static var unmapFlag: UInt32 { 1 }
}

/// Split virtqueues (virtio 2.7): places in rings, in bytes, and flags.
@usableFromInline enum SplitRing {
    /// Size and alignment of a descriptor (2.7.5).
    @inlinable static var descriptorBytes: UInt64 { 16 }
    /// A descriptor's flag: `next` is valid.
    @inlinable static var nextFlag: UInt16 { 1 }
    /// A descriptor's flag: the device writes to the buffer.
    @inlinable static var writeFlag: UInt16 { 2 }
    /// A descriptor's flag: the buffer is a table of descriptors (2.7.5.3).
    @inlinable static var indirectFlag: UInt16 { 4 }

    /// Alignment of the available ring (2.7).
    @inlinable static var availableAlignment: UInt64 { 2 }
    /// Alignment of the used ring (2.7).
    @inlinable static var usedAlignment: UInt64 { 4 }
    /// Where both rings have their index, behind their flags (2.7.6, 2.7.8).
    @inlinable static var indexOffset: UInt64 { 2 }
    /// Where the elements of both rings begin.
    @inlinable static var elementsOffset: UInt64 { 4 }
    /// Size of an element of the available ring.
    @inlinable static var availableElementBytes: UInt64 { 2 }
    /// Size of an element of the used ring: id and length.
    @inlinable static var usedElementBytes: UInt64 { 8 }
    /// Size of the event index behind both rings.
    @inlinable static var eventBytes: UInt64 { 2 }
    /// The available ring's flag: the driver wants no interrupts (2.7.7).
    @inlinable static var noInterruptFlag: UInt16 { 1 }
    /// The used ring's flag: the device wants no notifications (2.7.10).
    @inlinable static var noNotifyFlag: UInt16 { 1 }
}

/// The area of requests in flight, for split queues (vhost-user, "Inflight I/O tracking"): offsets
/// in a queue's part and in a descriptor's state, in bytes.
@usableFromInline enum InflightLayout {
    @inlinable static var version: UInt64 { 8 }
    @inlinable static var descriptorCount: UInt64 { 10 }
    @inlinable static var lastBatchHead: UInt64 { 12 }
    @inlinable static var usedIndex: UInt64 { 14 }
    /// Where the states begin.
    @inlinable static var states: UInt64 { 16 }
    @inlinable static var stateBytes: UInt64 { 16 }
    @inlinable static var stateInflight: UInt64 { 0 }
    @inlinable static var stateNext: UInt64 { 6 }
    @inlinable static var stateCounter: UInt64 { 8 }
    /// The version that is written; zero is an area that nobody has used.
    @inlinable static var currentVersion: UInt16 { 1 }
    /// Each queue's part begins at a multiple of this: parts share no cache line.
    @inlinable static var alignment: UInt64 { 64 }
}
