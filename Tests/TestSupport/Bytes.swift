import Foundation
import Glibc

/// Whole-range operations on byte arrays, fast enough for disk images in a debug build.
package enum Bytes {
    /// The first index at which two equally long ranges differ, counted from their starts.
    package static func firstDifference(
        _ left: [UInt8], at leftStart: Int, _ right: [UInt8], at rightStart: Int, count: Int
    ) -> Int? {
        if isEqual(left, at: leftStart, right, at: rightStart, count: count) { return nil }
        var low = 0
        var high = count
        // The range [low, high) always holds a difference, and [0, low) holds none.
        while high - low > 1 {
            let middle = low + (high - low) / 2
            let same = isEqual(
                left, at: leftStart + low, right, at: rightStart + low, count: middle - low)
            if same { low = middle } else { high = middle }
        }
        return low
    }

    /// Whether two ranges hold the same bytes.
    package static func isEqual(
        _ left: [UInt8], at leftStart: Int, _ right: [UInt8], at rightStart: Int, count: Int
    ) -> Bool {
        precondition(leftStart >= 0 && leftStart + count <= left.count, "left range outside")
        precondition(rightStart >= 0 && rightStart + count <= right.count, "right range outside")
        if count == 0 { return true }
        // SAFETY: both ranges were checked against their arrays just above, and the pointers do
        // not leave the closures.
        return unsafe left.withUnsafeBytes { first in
            unsafe right.withUnsafeBytes { second in
                guard let a = first.baseAddress, let b = second.baseAddress else { return true }
                return unsafe memcmp(a + leftStart, b + rightStart, count) == 0
            }
        }
    }

    /// Copies `count` bytes of `source` over those of `target`.
    package static func copy(
        _ source: [UInt8], at sourceStart: Int, to target: inout [UInt8], at targetStart: Int,
        count: Int
    ) {
        precondition(sourceStart >= 0 && sourceStart + count <= source.count, "source outside")
        precondition(targetStart >= 0 && targetStart + count <= target.count, "target outside")
        if count == 0 { return }
        // SAFETY: both ranges were checked against their arrays just above; exclusive access to
        // `target` rules out that they are one array.
        unsafe target.withUnsafeMutableBytes { to in
            unsafe source.withUnsafeBytes { from in
                guard let a = to.baseAddress, let b = from.baseAddress else { return }
                unsafe memcpy(a + targetStart, b + sourceStart, count)
            }
        }
    }

    /// Whether a range holds zeros only.
    package static func isZero(_ bytes: [UInt8], at start: Int, count: Int) -> Bool {
        var done = 0
        while done < count {
            let step = min(zeros.count, count - done)
            if !isEqual(bytes, at: start + done, zeros, at: 0, count: step) { return false }
            done += step
        }
        return true
    }

    /// The contents of a file.
    package static func ofFile(_ path: String) throws -> [UInt8] {
        [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
    }

    /// The contents of a file or a block device.
    package static func ofDisk(_ path: String) throws -> [UInt8] {
        guard let file = FileHandle(forReadingAtPath: path) else {
            throw TestFailure("cannot open \(path)")
        }
        defer { try? file.close() }
        return [UInt8](try file.readToEnd() ?? Data())
    }

    private static let zeros = [UInt8](repeating: 0, count: 1 << 20)
}
