import CLinux
import Glibc

// Memory for a library that moves bytes itself: places as numbers, valid as long as their lender
// says.

extension BufferArena {
    /// Where a range lies, as a number; its lender keeps it allocated until it is told that nobody
    /// uses it.
    package borrowing func address(_ offset: Int, count: Int) -> UInt {
        unsafe UInt(bitPattern: pointer(offset, count))
    }
}

/// The ranges of a lane, until the lane is given back.
@safe
package struct LentLane {
    private let list: UnsafeMutablePointer<iovec>
    private let count: Int

    fileprivate init(_ list: UnsafeMutablePointer<iovec>, _ count: Int) {
        unsafe self.list = unsafe list
        self.count = count
    }

    /// Copies the ranges' first bytes to a place; bytes, or the negative errno.
    package func copy(to address: UInt, count bytes: Int) -> Int {
        // SAFETY: the lender keeps the list; the kernel checks the guest's memory, and the caller
        // owns the place.
        let result = unsafe nbdpull_copy_in(
            UnsafeMutableRawPointer(bitPattern: address), bytes, list, UInt(count))
        return result >= 0 ? result : -Int(errno)
    }

    /// Copies bytes from a place into the ranges; bytes, or the negative errno.
    package func copy(from address: UInt, count bytes: Int) -> Int {
        // SAFETY: as above.
        let result = unsafe nbdpull_copy_out(
            list, UInt(count), UnsafeMutableRawPointer(bitPattern: address), bytes)
        return result >= 0 ? result : -Int(errno)
    }
}

extension VectorTable {
    /// Lends a lane, as it is, until it is given back.
    package borrowing func lend(_ lane: Int) -> LentLane {
        unsafe LentLane(list(lane), count(lane))
    }
}
