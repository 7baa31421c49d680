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
    /// Room is taken away from whole units of so many bytes only, a power of two: a part of one is
    /// zeroed where it lies.
    var zeroingUnit: UInt64 { get }
    /// Whether it tells what holds data.
    var tellsAllocation: Bool { get }
    /// Nobody uses the source any more.
    func release()
}
