package import Glibc
package import VhostFrontEnd

/// How a guest reaches its disk.
package enum GuestKind: String, CaseIterable, Sendable {
    case nbd, vhost
}

/// One command of a guest.
package struct GuestRequest {
    package let kind: StressOperation.Kind
    package let offset: Int
    package let count: Int
    /// What a write writes.
    package let content: [UInt8]
    /// It is on the disk when it has ended; a wish that not every kind of guest has.
    package let isDurable: Bool
    /// Zeroes may give room back.
    package let mayUnmap: Bool
}

/// A disk as a guest has it: many commands in flight, started and collected by one thread.
package protocol GuestDisk: AnyObject {
    var sizeBytes: Int { get }
    var canTrim: Bool { get }
    /// Every range of a command is a multiple of it, in bytes.
    var blockBytes: Int { get }

    /// Sends a command, and returns its number.
    func start(_ request: GuestRequest) throws -> Int
    /// A command's answer, which is given once; nil while it is in flight.
    func answer(to number: Int) -> DiskAnswer?
    /// What to wait for before ``proceed()``; nil if there is something at once.
    func waiting() -> [pollfd]?
    func proceed() throws
}

/// Waits until one of the disks has something, or the time is over, and lets all of them go on.
func waitForActivity(_ disks: [any GuestDisk], milliseconds: Int32) throws {
    var entries: [pollfd] = []
    var limit = milliseconds
    for disk in disks {
        if let more = disk.waiting() { entries += more } else { limit = 0 }
    }
    // SAFETY: the array outlives the call, which has its count.
    _ = unsafe poll(&entries, nfds_t(entries.count), limit)
    for disk in disks { try disk.proceed() }
}

extension NBDClient: GuestDisk {
    package var blockBytes: Int { 1 }

    package func start(_ request: GuestRequest) throws -> Int {
        var flags: NBDFlags = request.isDurable ? .forceUnitAccess : []
        let ticket =
            switch request.kind {
            case .write: try startWrite(request.content, at: request.offset, flags)
            case .zero:
                try {
                    if !request.mayUnmap { flags.insert(.noHole) }
                    return try startZero(request.offset, request.count, flags)
                }()
            case .trim: try startTrim(request.offset, request.count, flags)
            case .read: try startRead(request.offset, request.count)
            case .flush: try startFlush()
            }
        return Int(ticket.cookie)
    }

    package func answer(to number: Int) -> DiskAnswer? {
        switch outcome(of: NBDTicket(cookie: Int64(number))) {
        case nil: nil
        case .failed(let failure): .failed(failure.description)
        case .done(let bytes): .done(bytes)
        }
    }

    package func waiting() -> [pollfd]? { [activity] }

    package func proceed() { NBDClient.waitForActivity([self], milliseconds: 0) }
}

extension VhostDisk: GuestDisk {
    package var canTrim: Bool { canDiscard }
    package var blockBytes: Int { 512 }

    package func start(_ request: GuestRequest) throws -> Int {
        let command: DiskCommand =
            switch request.kind {
            case .write: .write(request.content)
            case .zero: .writeZeroes(mayUnmap: request.mayUnmap)
            case .trim: .discard
            case .read: .read
            case .flush: .flush
            }
        return try start(command, request.offset, request.count)
    }
}

extension ServerUnderTest {
    /// Where a disk's vhost-user-blk back end listens, below the folder given to `--vhost-dir`.
    package func vhostSocket(_ folder: String, _ domain: String, _ disk: String) -> String {
        "\(folder)/\(domain)-\(disk).sock"
    }

    /// Connects a guest to a disk; `folder` is what was given to `--vhost-dir`.
    package func guestDisk(
        _ domain: String, _ disk: String, _ kind: GuestKind, vhostFolder folder: String
    ) throws -> any GuestDisk {
        switch kind {
        case .nbd: return try NBDClient(liveURI(domain, disk))
        case .vhost:
            var options = FrontEndOptions()
            options.queues = 2
            options.queueSize = 256
            return try VhostDisk(vhostSocket(folder, domain, disk), options)
        }
    }
}
