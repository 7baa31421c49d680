import CLinux
import Glibc
import SystemLayer

/// Pipes that carry pages of files to sockets without copying them.
///
/// A page in a pipe is the page cache's own: it shows later changes of the file, so code that fills
/// a pipe knows that the pages cannot change. Pipes are made when first needed and kept.
package struct PipePool: ~Copyable {
    /// Bytes that a pipe takes; without them there is none: an unprivileged user has a budget.
    package static let pipeBytes = 1 << 20

    private struct Ends {
        var reading: Int32
        var writing: Int32
    }

    /// How many times a pipe is not asked for after the kernel has refused one: neither descriptors
    /// nor a user's budget for pipes come back within a few requests.
    package static let takesAfterRefusal = 256

    private let limit: Int
    private var pipes: [Ends] = []
    private var spare: [Int] = []
    /// Numbers of pipes that were closed and could not be made again.
    private var missing: [Int] = []
    /// The kernel has refused a pipe lately: so many times none is asked for.
    private var refusals = 0
    private let make: () -> (reading: Int32, writing: Int32)?

    /// An empty pool that makes at most `limit` pipes.
    package init(limit: Int) { self.init(limit: limit, make: Self.makePipe) }

    /// A pool whose pipes are made by `make`, which says nil when there is none.
    package init(limit: Int, make: @escaping () -> (reading: Int32, writing: Int32)?) {
        precondition(limit >= 0)
        self.limit = limit
        self.make = make
    }

    deinit {
        for pipe in pipes where pipe.reading >= 0 {
            _ = close(pipe.reading)
            _ = close(pipe.writing)
        }
    }

    /// An empty pipe's number, or nil when there is none to be had.
    package mutating func take() -> Int? {
        if let pipe = spare.popLast() { return pipe }
        guard !missing.isEmpty || pipes.count < limit else { return nil }
        guard refusals == 0 else {
            refusals -= 1
            return nil
        }
        guard let ends = ask() else { return nil }
        if let pipe = missing.popLast() {
            pipes[pipe] = ends
            return pipe
        }
        pipes.append(ends)
        return pipes.count - 1
    }

    /// Takes a pipe back that is empty again.
    package mutating func giveBack(_ pipe: Int) { spare.append(pipe) }

    /// Takes a pipe back whatever it holds.
    package mutating func discard(_ pipe: Int) {
        _ = close(pipes[pipe].reading)
        _ = close(pipes[pipe].writing)
        pipes[pipe] = Ends(reading: -1, writing: -1)
        if let ends = ask() {
            pipes[pipe] = ends
            spare.append(pipe)
        } else {
            missing.append(pipe)
        }
    }

    private mutating func ask() -> Ends? {
        guard let ends = make() else {
            refusals = Self.takesAfterRefusal
            return nil
        }
        return Ends(reading: ends.reading, writing: ends.writing)
    }

    private static func makePipe() -> (reading: Int32, writing: Int32)? {
        var reading: Int32 = -1
        var writing: Int32 = -1
        // SAFETY: the call fills the two locals; it keeps no pointer.
        guard unsafe nbdpull_pipe(&reading, &writing) == 0 else { return nil }
        guard fcntl(writing, nbdpull_F_SETPIPE_SZ, Int32(pipeBytes)) >= pipeBytes else {
            _ = close(reading)
            _ = close(writing)
            return nil
        }
        return (reading, writing)
    }

    /// Puts pages of a file into an empty pipe; returns the bytes in it, fewer when the file ends,
    /// cannot be read or more do not fit.
    ///
    /// Waits for a device where the pages are not in memory: see `FileCalls.isResident`.
    package func fill(
        _ pipe: Int, from descriptor: Int32, filePosition: UInt64, count: Int
    ) -> Int {
        var done = 0
        while done < count {
            let result = nbdpull_splice_from_file(
                descriptor, UInt64(filePosition) + UInt64(done), pipes[pipe].writing,
                UInt(count - done))
            if result < 0, errno == EINTR { continue }
            if result <= 0 { break }
            done += result
        }
        return done
    }

    /// Moves bytes from a pipe to a socket; returns how many, or the negative errno (EAGAIN: the
    /// socket is full).
    ///
    /// `more` says that other bytes follow at once.
    package func send(_ pipe: Int, to socket: Int32, count: Int, more: Bool) -> Int {
        while true {
            let result = nbdpull_splice_to_socket(
                pipes[pipe].reading, socket, UInt(count), more ? 1 : 0)
            if result >= 0 { return result }
            if errno != EINTR { return -Int(errno) }
        }
    }
}
