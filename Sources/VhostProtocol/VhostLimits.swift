/// Bounds on what a front-end and a guest may ask for, each with its reason.
public enum VhostLimits {
    /// Longest payload of a message, in bytes; a longer one ends the session.
    ///
    /// What the largest message takes, the configuration space with its header, rounded up.
    public static let payloadBytesMax = 512

    /// Descriptors that come with one message.
    ///
    /// As many as SET_MEM_TABLE may have regions (vhost-user, "Memory regions description").
    public static let descriptorsMax = 8

    /// Queues of one device.
    ///
    /// The index has eight bits. Front-ends make one for each of the guest's processors, so a low
    /// limit keeps large machines from starting.
    public static let queuesMax = 256

    /// Entries of one queue.
    ///
    /// The most that qemu makes; others use 128 or 256.
    public static let queueSizeMax: UInt16 = 1024

    /// Regions of memory at a time.
    ///
    /// As many slots as KVM gives to memory on x86; memory that is plugged in takes one each.
    public static let regionsMax = 509

    /// Memory of one guest, in bytes: a quarter of a process's address space.
    public static let memoryBytesMax: UInt64 = 1 << 45

    /// What regions begin and end at a multiple of, in bytes.
    ///
    /// With it an address is aligned in our mapping just as it is in the guest's memory.
    public static let pageBytes: UInt64 = 4096

    /// Bytes of the configuration space (vhost-user, "Virtio device config space").
    public static let configBytesMax = 256

    /// Data segments of one request, as the guest is told.
    ///
    /// With header and status this fills a queue of 128, the most common size: a driver that finds
    /// no memory for an indirect table still gets its largest request into the ring.
    public static let segmentsMax = 126

    /// Descriptors of an indirect table that are looked at.
    ///
    /// Drivers that do not know SEG_MAX make chains as long as a queue.
    @inlinable public static var chainDescriptorsMax: UInt64 { 1024 }

    /// Largest read or write, in bytes; the same as over NBD.
    @inlinable public static var requestBytesMax: UInt64 { 67_108_864 }

    /// Largest discard or write zeroes, in sectors: 1 GiB.
    ///
    /// Kernels split longer ones; so none keeps others waiting for long.
    @inlinable public static var rangeSectorsMax: UInt32 { 2_097_152 }
}
