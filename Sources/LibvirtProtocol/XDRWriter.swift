/// Writes XDR values (RFC 4506) one after the other.
package struct XDRWriter: Sendable, Hashable {
    /// The bytes written so far.
    package private(set) var bytes: [UInt8] = []

    /// Begins with nothing.
    package init() {}

    /// Appends an unsigned integer of 32 bits.
    package mutating func uint(_ value: UInt32) { append(UInt64(value), bytes: 4) }

    /// Appends a signed integer of 32 bits.
    package mutating func int(_ value: Int32) { uint(UInt32(bitPattern: value)) }

    /// Appends an unsigned integer of 64 bits.
    package mutating func uhyper(_ value: UInt64) { append(value, bytes: 8) }

    /// Appends a signed integer of 64 bits.
    package mutating func hyper(_ value: Int64) { uhyper(UInt64(bitPattern: value)) }

    /// Appends a floating point number of 64 bits.
    package mutating func double(_ value: Double) { uhyper(value.bitPattern) }

    /// Appends a truth value.
    package mutating func bool(_ value: Bool) { uint(value ? 1 : 0) }

    /// Appends bytes of a count that the reader knows, filled up to a multiple of four.
    package mutating func opaque(_ value: some Collection<UInt8>) {
        bytes += value
        bytes += repeatElement(0, count: -value.count & 3)
    }

    /// Appends a count in front of an array; what does not fit 32 bits cannot be held in memory as
    /// elements of four bytes by any reader, and is cut to the most there is.
    package mutating func count(_ value: Int) { uint(UInt32(clamping: value)) }

    /// Appends a string.
    package mutating func string(_ value: String) {
        count(value.utf8.count)
        opaque(value.utf8)
    }

    /// Appends a string that may be absent.
    package mutating func optionalString(_ value: String?) {
        bool(value != nil)
        if let value { string(value) }
    }

    /// Appends an array of strings.
    package mutating func strings(_ values: [String]) {
        count(values.count)
        for value in values { string(value) }
    }

    private mutating func append(_ value: UInt64, bytes count: Int) {
        for shift in stride(from: (count - 1) * 8, through: 0, by: -8) {
            bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(shift)))
        }
    }
}
