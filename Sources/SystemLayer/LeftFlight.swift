import CLinux

/// What an earlier process has noted in its `FlightRecorder`, and how it crashed.
package struct LeftFlight: Sendable, Hashable {
    /// How it crashed.
    package struct Crash: Sendable, Hashable {
        package var signal: Int32
        /// The thread, and its name.
        package var thread: UInt64
        package var threadName: String
        /// Nanoseconds since 1970.
        package var time: UInt64
        /// The address that was accessed, and that of the instruction.
        package var address: UInt64
        package var program: UInt64
    }

    /// What a thread was doing.
    package struct Doing: Sendable, Hashable {
        package var thread: UInt64
        package var activity: FlightActivity
        package var command: UInt16
        /// The export's name, if it has one.
        package var export: String?
        package var offset: UInt64
        package var length: UInt64
        package var text: String
    }

    /// Lines that it was begun with, by their first words.
    package var facts: [String: String]
    /// Nil: it did not crash, as far as it knew.
    package var crash: Crash?
    package var doings: [Doing]

    /// Reads the file that an earlier process has left; nil when there is none, or one of another
    /// version.
    package static func read(_ path: String) -> LeftFlight? {
        guard let bytes = try? StateFiles.read(path, limit: FlightRecorder.byteCount) else {
            return nil
        }
        return LeftFlight(bytes)
    }

    /// The same of its bytes.
    package init?(_ bytes: [UInt8]) {
        guard bytes.count == FlightRecorder.byteCount else { return nil }
        let head = Self.text(bytes, 0, FlightRecorder.crashOffset)
        let lines = head.split(separator: "\n").map(String.init)
        guard lines.first == "\(FlightRecorder.title) \(FlightRecorder.version)" else { return nil }
        facts = [:]
        for line in lines.dropFirst() {
            let parts = line.split(separator: " ", maxSplits: 1).map(String.init)
            if parts.count == 2 { facts[parts[0]] = parts[1] }
        }
        crash = Self.crash(bytes)
        doings = []
        for index in 0..<FlightRecorder.slotCount {
            let place = FlightRecorder.slotsOffset + index * FlightRecorder.slotBytes
            if let doing = Self.doing(bytes, place) { doings.append(doing) }
        }
    }

    // As `struct nbdpull_crash` lies in memory.
    private static func crash(_ bytes: [UInt8]) -> Crash? {
        let place = FlightRecorder.crashOffset
        guard word32(bytes, place) != 0 else { return nil }
        let (seconds, nanoseconds) = (word(bytes, place + 32), word(bytes, place + 40))
        return Crash(
            signal: Int32(bitPattern: word32(bytes, place + 4)),
            thread: UInt64(word32(bytes, place + 12)), threadName: text(bytes, place + 48, 16),
            time: seconds &* 1_000_000_000 &+ nanoseconds, address: word(bytes, place + 16),
            program: word(bytes, place + 24))
    }

    private static func doing(_ bytes: [UInt8], _ place: Int) -> Doing? {
        let thread = word(bytes, place)
        let what = word(bytes, place + 8)
        guard thread != 0, let activity = FlightActivity(rawValue: what & 0xFF),
            activity != .nothing
        else { return nil }
        // By `mark` the export is in the first word.
        let export = activity.isMarked ? what >> 24 : word(bytes, place + 16)
        return Doing(
            thread: thread, activity: activity, command: UInt16(truncatingIfNeeded: what >> 8),
            export: name(bytes, export), offset: word(bytes, place + 24),
            length: word(bytes, place + 32),
            text: text(
                bytes, place + FlightSlot.textOffset,
                FlightRecorder.slotBytes - FlightSlot.textOffset))
    }

    private static func name(_ bytes: [UInt8], _ export: UInt64) -> String? {
        guard export != 0 else { return nil }
        let place =
            FlightRecorder.namesOffset + Int(export % UInt64(FlightRecorder.nameCount))
            * FlightRecorder.nameBytes
        guard word(bytes, place) == export else { return nil }
        return text(bytes, place + 8, FlightRecorder.nameBytes - 8)
    }

    private static func word32(_ bytes: [UInt8], _ place: Int) -> UInt32 {
        (0..<4).reduce(UInt32(0)) { $0 | UInt32(bytes[place + $1]) << UInt32($1 * 8) }
    }

    private static func word(_ bytes: [UInt8], _ place: Int) -> UInt64 {
        (0..<8).reduce(UInt64(0)) { $0 | UInt64(bytes[place + $1]) << UInt64($1 * 8) }
    }

    private static func text(_ bytes: [UInt8], _ place: Int, _ count: Int) -> String {
        String(decoding: bytes[place..<(place + count)].prefix { $0 != 0 }, as: UTF8.self)
    }
}

extension FlightActivity {
    /// Whether `mark` notes it.
    fileprivate var isMarked: Bool {
        switch self {
        case .turn, .record, .accepting: true
        case .nothing, .request, .completion, .message, .tick, .handshake, .copy, .openingDisk,
            .resumingJob, .beginningJob:
            false
        }
    }
}
