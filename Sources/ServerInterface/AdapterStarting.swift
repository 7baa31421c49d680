/// Why an adapter cannot be had.
package struct AdapterFault: Error, Sendable, Hashable {
    package let detail: String
    package init(_ detail: String) { self.detail = detail }
}

/// Starts adapters: programs that open an image and serve it by NBD to this server alone.
package protocol AdapterStarting: Sendable {
    /// Looks at the image and starts a program for it; on a thread that may wait.
    ///
    /// The disk's own attributes say how the image is opened. Throws when the program is missing,
    /// refuses the image, or is not ready in time.
    func start(
        _ image: ImageConfiguration, for disk: DiskConfiguration, milliseconds: Int32
    ) throws(AdapterFault) -> any Adapter
}

/// A program that has a disk's image open.
package protocol Adapter: AnyObject, Sendable {
    /// Where it serves the image.
    var address: UpstreamAddress { get }
    /// Where it shares memory with whoever asks for it (vhost-user); nil: nowhere.
    var sharedSocket: String? { get }
    /// What `RemoteSource.zeroingUnit` is for its image, in bytes.
    var zeroingUnit: UInt64 { get }
    /// Starts it again when it has ended; on a thread that may wait.
    func ensureRuns(milliseconds: Int32) throws(AdapterFault)
    /// What was wrong when it was started and did not keep it from being, or when it was to end; told
    /// once.
    func takeProblem() -> String?
    /// What it has said when it did not start because it was to share memory, and was started without
    /// that; told once.
    func takeSharingRefusal() -> String?
    /// Changes may be lost that an earlier server had answered.
    var mayHaveLost: Bool { get }
    /// A file in which the server says what is `AtStake`; it is read when the next server starts a
    /// program for the image. Empty: there is none.
    var unflushedFile: String { get }
    /// `mayHaveLost` has been acted on: the next server is not told of it.
    func heedLoss()
    /// Whoever opens the image next has it as it is, whatever was lost.
    func forgetLoss()
    /// The image's files before a program of this server had them open.
    var before: ImageState { get }
    /// Has it end for the next server as soon as it can, without a wait.
    func leave()
    /// Ends it in order, for good; returns the image's files as it has left them, nil when it has
    /// not ended in time.
    func end(milliseconds: Int32) -> ImageState?
    /// The same for those who do not ask; returns when the image is closed, or after a limit.
    ///
    /// `whenOver`: called once when the program runs no more, perhaps later, on any thread.
    func stop(whenOver: @escaping @Sendable () -> Void)
}

extension Adapter {
    package var mayHaveLost: Bool { false }
    package var unflushedFile: String { "" }
    package func leave() {}
    package func heedLoss() {}
    package func forgetLoss() {}
    /// The same for those who do not wait.
    package func stop() { stop {} }
}

/// Files as they are at one time: equal values mean that nobody has changed any in between.
package struct ImageState: Sendable, Hashable {
    /// Which files they are; zero when there are none.
    package let files: UInt64
    /// When they were changed, all in one number.
    package let changed: UInt64

    package init(files: UInt64, changed: UInt64) {
        self.files = files
        self.changed = changed
    }
}

/// Changes that a server has answered and that are not durable, as the byte that says so in the file
/// of an image.
package enum AtStake: UInt8, Sendable, CaseIterable {
    /// `0`
    case nothing = 0x30
    /// `1`: the program that has the image had all of them; where it ends in order nothing is lost.
    case whatProgramHas = 0x31
    /// `2`: a program that may be gone had some, and they are not all written again, or are lost.
    case whatNobodyHas = 0x32
}

/// What the process that keeps adapters is told, a JSON value in each line.
package enum KeeperCommand: Sendable, Hashable, Codable {
    case start(AdapterOrder)
    case stop(id: UInt64)
    /// The same for the next server, which machines wait for: nothing is mended.
    case leave(id: UInt64)
    /// What the program before it has lost was told.
    case heard(id: UInt64)
}

/// A program to be started.
package struct AdapterOrder: Sendable, Hashable, Codable {
    package var id: UInt64
    /// Its absolute path.
    package var program: String
    /// Without its name.
    package var arguments: [String]
    /// More of them, for a second socket at which it shares memory (vhost-user); empty: it has none.
    package var sharingArguments: [String]
    /// Its sockets, and a file that it writes when it is ready: all are removed before.
    package var socket: String
    package var sharedSocket: String
    package var readyFile: String
    /// A file that the program has locked for as long as it runs, whoever started it; it is empty
    /// when the image was closed in order.
    package var lockFile: String
    /// A file in memory in which the server says what is `AtStake`.
    ///
    /// Another one for each time the image is served; empty: nobody says so.
    package var unflushedFile: String
    /// A program, by its absolute path, and its arguments, that mends what one that was killed has
    /// left in the image; empty: nothing is to be mended.
    package var repair: [String]

    package init(
        id: UInt64, program: String, arguments: [String], sharingArguments: [String],
        socket: String, sharedSocket: String, readyFile: String, lockFile: String,
        unflushedFile: String = "", repair: [String]
    ) {
        self.unflushedFile = unflushedFile
        self.sharingArguments = sharingArguments
        self.sharedSocket = sharedSocket
        self.repair = repair
        self.id = id
        self.program = program
        self.arguments = arguments
        self.socket = socket
        self.readyFile = readyFile
        self.lockFile = lockFile
    }
}

/// What it says.
package enum KeeperReport: Sendable, Hashable, Codable {
    /// It serves the image. `mayHaveLost`: the one before was killed and its server had ended, with
    /// changes perhaps that a machine had been told are written.
    case ready(id: UInt64, mayHaveLost: Bool)
    /// A program that another server has started still has the image open.
    case waits(id: UInt64)
    /// The program has ended, or could not be started; what it has said of that.
    case ended(id: UInt64, text: String)
}
