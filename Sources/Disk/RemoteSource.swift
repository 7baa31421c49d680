package import SystemLayer

/// What is behind a source that is no file of this host.
package protocol RemoteSource: AnyObject, Sendable {
    /// Makes every write durable that was answered; throws when that cannot be said.
    ///
    /// May wait as long as the other side does.
    func makeDurable() throws(SystemFault)
    /// The same without waiting, and nobody is told.
    func beginFlush()
    /// Whether discards reach it.
    var discards: Bool { get }
    /// Whether zeroing is faster than writing.
    var zeroesFast: Bool { get }
    /// Only whole units of so many bytes, a power of two, are zeroed by a command: a part of one is
    /// zeroed by writing.
    var zeroingUnit: UInt64 { get }
    /// Whether it tells what holds data.
    var tellsAllocation: Bool { get }
    /// The files that hold it before this server had them open.
    var before: RemoteState { get }
    /// Lets go of it, when everything is durable and nothing more is asked; returns its files as
    /// they are then, nil when it is not over in time and they may change still.
    func close(milliseconds: Int32) -> RemoteState?
    /// What was lost before it was opened has been told: the next server is not told of it.
    func heedLoss()
    /// Whoever opens it next has it as it is, whatever was lost.
    func forgetLoss()
    /// Has whatever serves it end for the next server, without a wait: everything is durable, and
    /// nothing more is asked.
    func leave()
    /// Nobody uses the source any more.
    func release()
}

/// Files behind a remote source as they are at one time; zeros where nothing is known of them.
package struct RemoteState: Sendable, Hashable {
    /// Which files they are.
    package let files: UInt64
    /// When they were changed, all in one number.
    package let changed: UInt64

    package init(files: UInt64 = 0, changed: UInt64 = 0) {
        self.files = files
        self.changed = changed
    }
}
