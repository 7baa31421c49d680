import CLinux
import Glibc
import Synchronization

/// What the threads of the process are doing, in a file in memory that outlives it: after a crash
/// the next process reads there what it came of.
///
/// Noting costs a few stores; a thread that has no place notes nothing. All of the file's memory is
/// there from the beginning, so no store to it is a fault.
///
/// The file: a page that begins with lines of text, with the crash from byte 2048 on; then a place
/// of 128 bytes for each thread; then a name of 128 bytes for each export.
@safe
package final class FlightRecorder: Sendable {
    /// Counts up with every change of the form.
    package static let version = 1
    static let title = "nbdpull-flight"
    static let crashOffset = 2048
    static let slotsOffset = 4096
    static let slotCount = 256
    static let slotBytes = 128
    static let namesOffset = slotsOffset + slotCount * slotBytes
    static let nameCount = 1024
    static let nameBytes = 128
    static let byteCount = namesOffset + nameCount * nameBytes

    private let address: UInt
    private let path: Mutex<String?>
    private let lastNote = Atomic<UInt64>(0)

    /// One that nobody reads.
    package init() throws(SystemFault) {
        address = try Self.map(-1)
        path = Mutex(nil)
    }

    /// Makes the file, in place of one that has the name, and notes crashes in it from now on; once
    /// in a process.
    ///
    /// `facts`: lines about the process. The directory lies in memory. `notesCrashes`: false in a
    /// process that has its own way to crash.
    package init(
        path: String, facts: [String], notesCrashes: Bool = true
    ) throws(SystemFault) {
        try FileCalls.remove(path)
        let file = try FileCalls.open(path, [.write, .createNew])
        do throws(SystemFault) {
            // Room for all of it now: there may be none when it is needed.
            let result = posix_fallocate(file.raw, 0, off_t(Self.byteCount))
            guard result == 0 else { throw SystemFault(call: "posix_fallocate", errno: result) }
            var head = ["\(Self.title) \(Self.version)"] + facts
            head.append("base \(nbdpull_program_base())")
            let text = Array((head.joined(separator: "\n") + "\n").utf8)
            try FileCalls.write(file.raw, Array(text.prefix(Self.crashOffset - 1)), at: 0)
            address = try Self.map(file.raw)
        } catch {
            try? FileCalls.remove(path)
            throw error
        }
        self.path = Mutex(path)
        guard notesCrashes else { return }
        // SAFETY: the mapping is never undone, so the handler can always write there.
        if let place = unsafe UnsafeMutablePointer<nbdpull_crash>(
            bitPattern: address + UInt(Self.crashOffset))
        {
            unsafe nbdpull_note_crashes(place)
        }
    }

    /// From now on a crash ends the process at once, as it does where it is noted.
    package static func endAtOnce() {
        nbdpull_note_crashes(nil)
    }

    // Never unmapped: signal handlers and threads may store to it until the process ends.
    private static func map(_ descriptor: Int32) throws(SystemFault) -> UInt {
        let sharing = descriptor < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED
        // SAFETY: a new mapping that nobody else has.
        let memory = unsafe mmap(
            nil, byteCount, PROT_READ | PROT_WRITE, sharing, descriptor, 0)
        guard let memory = unsafe memory, unsafe memory != MAP_FAILED else {
            throw SystemFault(call: "mmap", errno: errno)
        }
        return UInt(bitPattern: memory)
    }

    /// Gives the file another name, in place of one that has it; one that nobody reads stays as it
    /// is.
    package func move(to new: String) throws(SystemFault) {
        try path.withLock { path throws(SystemFault) in
            guard let old = path, old != new else { return }
            try FileCalls.rename(old, to: new)
            path = new
        }
    }

    /// The process ends in order: there is nothing to be read.
    package func end() {
        path.withLock { path in
            if let path { try? FileCalls.remove(path) }
        }
    }

    /// A place for the calling thread as long as the process lives.
    package func claim() -> FlightSlot {
        for index in 0..<Self.slotCount {
            let slot = FlightSlot(address + UInt(Self.slotsOffset + index * Self.slotBytes))
            if slot.take() { return slot }
        }
        return .none
    }

    /// Runs a call that the next process is to know of if it crashes; `text` says what it is about.
    package func during<Value: ~Copyable, Fault: Error>(
        _ activity: FlightActivity, _ text: String, _ body: () throws(Fault) -> Value
    ) throws(Fault) -> Value {
        let slot = claim()
        slot.say(text)
        slot.note(
            activity, offset: lastNote.add(1, ordering: .relaxed).newValue)
        defer { slot.giveBack() }
        return try body()
    }

    /// Gives an export's number a name, which stays until another export needs its place.
    package func name(_ export: UInt64, _ text: String) {
        let place =
            address
            + UInt(
                Self.namesOffset + Int(export % UInt64(Self.nameCount))
                    * Self.nameBytes)
        FlightSlot.word(place, 0, 0)
        FlightSlot.text(text, place + 8, Self.nameBytes - 8)
        FlightSlot.word(place, 0, export)
    }
}

/// What a thread is doing.
package enum FlightActivity: UInt64, Sendable {
    case nothing = 0
    case request, completion, message, tick, handshake, copy
    case openingDisk, resumingJob, beginningJob
    /// A connection's turn outside of a request, and a record of TLS: of these only the export is
    /// noted.
    case turn, record
    case accepting
}

/// One thread's place in a `FlightRecorder`: a plain view, of memory that is never given back.
@safe
package struct FlightSlot: Sendable, BitwiseCopyable {
    private let address: UInt

    /// A place where nothing is noted.
    package static let none = FlightSlot(0)

    init(_ address: UInt) { self.address = address }

    static let textOffset = 48

    /// What the thread does now; `command` and the rest say more of a request.
    @inline(__always)
    package func note(
        _ activity: FlightActivity, command: UInt16 = 0, export: UInt64 = 0, offset: UInt64 = 0,
        length: UInt64 = 0
    ) {
        guard address != 0 else { return }
        Self.word(address, 1, activity.rawValue | UInt64(command) << 8)
        Self.word(address, 2, export)
        Self.word(address, 3, offset)
        Self.word(address, 4, length)
    }

    /// The same by one store, for what is no request; of an export only the low 40 bits are kept.
    @inline(__always)
    package func mark(_ activity: FlightActivity, export: UInt64 = 0) {
        guard address != 0 else { return }
        Self.word(address, 1, activity.rawValue | export << 24)
    }

    func take() -> Bool {
        // SAFETY: see word().
        guard let word = unsafe UnsafeMutablePointer<Atomic<UInt64>>(bitPattern: address) else {
            return false
        }
        return unsafe word.pointee.compareExchange(
            expected: 0, desired: UInt64(nbdpull_thread()), ordering: .acquiringAndReleasing
        ).exchanged
    }

    func giveBack() {
        guard address != 0 else { return }
        note(.nothing)
        Self.word(address, 0, 0)
    }

    func say(_ text: String) {
        guard address != 0 else { return }
        Self.text(text, address + UInt(Self.textOffset), FlightRecorder.slotBytes - Self.textOffset)
    }

    @inline(__always)
    static func word(_ place: UInt, _ index: Int, _ value: UInt64) {
        // SAFETY: places lie in a recorder's mapping, which is never undone; Atomic<UInt64> has the
        // layout of UInt64. Atomic, so that no store is left out because a crash reads none.
        guard let word = unsafe UnsafeMutablePointer<Atomic<UInt64>>(bitPattern: place) else {
            return
        }
        unsafe (word + index).pointee.store(value, ordering: .relaxed)
    }

    static func text(_ text: String, _ place: UInt, _ count: Int) {
        // SAFETY: the bytes lie in a recorder's mapping, and belong to the caller's place.
        guard let bytes = unsafe UnsafeMutablePointer<UInt8>(bitPattern: place) else { return }
        var index = 0
        for byte in text.utf8.prefix(count - 1) {
            unsafe bytes[index] = byte
            index += 1
        }
        unsafe bytes[index] = 0
    }
}
