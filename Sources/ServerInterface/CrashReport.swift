/// What the server before this one was doing when it crashed.
package struct CrashReport: Sendable, Hashable {
    /// What it was working on when it crashed, by which a disk or a job is told that crashes every
    /// server.
    package enum Subject: Sendable, Hashable {
        /// The disk of a live export of this name.
        case disk(export: String)
        case job(id: String)

        /// A long name is known by its beginning, so many bytes at most: what a crash leaves has
        /// room for it, and so has a file's name, whatever the characters are.
        package static let nameBytesMax = 72

        /// The beginning of a name, without a part of a character.
        package static func beginning(of name: String) -> String {
            var scalars = name.unicodeScalars
            while String(scalars).utf8.count > nameBytesMax { scalars.removeLast() }
            return String(scalars)
        }

        /// Whether a name, or what was kept of it, is this export's.
        package static func mayBe(_ kept: String, _ export: String) -> Bool {
            kept == export || kept == beginning(of: export)
        }
    }

    /// Its version.
    package var build: String
    package var processID: String
    /// The signal's number.
    package var signal: Int32
    /// Nanoseconds since 1970, and seconds since it was started.
    package var time: UInt64
    package var secondsServed: UInt64
    /// The name of the thread that crashed.
    package var thread: String
    /// The instruction, as its distance from where the program was loaded, and the address it went
    /// for.
    package var program: String
    package var address: UInt64
    package var subject: Subject?
    /// What the thread was doing, in words; empty when that is not known.
    package var doing: String
    /// What other threads were doing.
    package var others: [String]
    /// It was to take over from another server, and had not yet: nothing was cut off by its end.
    package var isNewcomers = false

    package init(
        build: String, processID: String, signal: Int32, time: UInt64, secondsServed: UInt64,
        thread: String, program: String, address: UInt64, subject: Subject?, doing: String,
        others: [String]
    ) {
        self.build = build
        self.processID = processID
        self.signal = signal
        self.time = time
        self.secondsServed = secondsServed
        self.thread = thread
        self.program = program
        self.address = address
        self.subject = subject
        self.doing = doing
        self.others = others
    }

    /// One line for people.
    package var summary: String {
        let what = doing.isEmpty ? "" : ": \(doing)"
        return "\(signalText) in thread \(thread)\(what)"
    }

    private var signalText: String {
        switch signal {
        case 4: "SIGILL (a check of the program's own failed)"
        case 5: "SIGTRAP (a check of the program's own failed)"
        case 6: "SIGABRT"
        case 7: "SIGBUS"
        case 8: "SIGFPE"
        case 11: "SIGSEGV"
        default: "signal \(signal)"
        }
    }
}
