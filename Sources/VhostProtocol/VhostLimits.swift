/// Bounds on what a front-end and a guest may ask for, each with its reason.
public enum VhostLimits {
    /// Longest message payload, in bytes; a longer one ends the session.
    ///
    /// Enough for the largest message, a whole configuration space.
    public static let payloadBytesMax = 512

    /// Most descriptors in one message.
    ///
    /// One per region of SET_MEM_TABLE (vhost-user, "Memory regions description").
    public static let descriptorsMax = 8

    /// Queues of one device.
    ///
    /// The index has eight bits. Front-ends create one queue per virtual CPU, so a lower limit
    /// would keep large machines from starting.
    public static let queuesMax = 256

    /// Entries of one queue.
    ///
    /// The most that qemu allows; other front-ends use 128 or 256.
    public static let queueSizeMax: UInt16 = 1024

    /// Regions of memory at a time.
    ///
    /// As many memory slots as KVM has on x86; each hotplugged module takes one.
    public static let regionsMax = 509

    /// Memory of one guest, in bytes: a quarter of a process's address space.
    public static let memoryBytesMax: UInt64 = 1 << 45

    /// Alignment of regions, in bytes.
    ///
    /// It makes our mapping as aligned as the guest's memory.
    public static let pageBytes: UInt64 = 4096

    /// Bytes of the configuration space (vhost-user, "Virtio device config space").
    public static let configBytesMax = 256

    /// Data segments per request, as told to the guest.
    ///
    /// With header and status, that fills a queue of 128, the most common size. A driver that
    /// cannot allocate an indirect table can still queue its largest request.
    public static let segmentsMax = 126

    /// Most data segments of a request of which some do not end at a sector.
    ///
    /// An operation takes so many of them, and has to end at a sector.
    @inlinable public static var oddSegmentsMax: Int { 128 }

    /// Longest indirect table, in descriptors.
    ///
    /// Drivers without SEG_MAX build chains as long as the largest queue.
    @inlinable public static var chainDescriptorsMax: UInt64 { 1024 }

    /// Largest read or write, in bytes; the same as over NBD.
    @inlinable public static var requestBytesMax: UInt64 { 67_108_864 }

    /// Largest discard or write zeroes, in sectors: 1 GiB.
    ///
    /// Drivers split longer ones, so that none delays others for long.
    @inlinable public static var rangeSectorsMax: UInt32 { 2_097_152 }
}
