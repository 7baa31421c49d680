import Synchronization

/// How much memory of guests may be mapped, of all front-ends together.
///
/// A front-end gets at most half of what the others have left: a few that take all they can get do
/// not keep the next one out.
package final class MappingBudget: Sendable {
    private struct State {
        var bytes: UInt64 = 0
        var mappings = 0
    }
    private let state = Mutex(State())
    /// All together, in bytes.
    package let limitBytes: UInt64
    /// Half of the mappings that the kernel lets a process have by default (`vm.max_map_count`).
    private static let mappingsMax = 32_000

    /// A budget of so many bytes.
    package init(limitBytes: UInt64) { self.limitBytes = limitBytes }

    /// What a front-end has mapped, and what it wants mapped in the end.
    package struct Wish: Sendable {
        /// What it has mapped now, in bytes and mappings.
        var bytesNow: UInt64 = 0
        var mappingsNow = 0
        /// What it keeps of that.
        var bytesKept: UInt64 = 0
        var mappingsKept = 0
        /// What is added.
        var bytesAdded: UInt64 = 0
        var mappingsAdded = 0

        package init() {}

        /// A mapping that it has, and whether that stays.
        package mutating func has(_ bytes: UInt64, stays: Bool) {
            bytesNow += bytes
            mappingsNow += 1
            guard stays else { return }
            bytesKept += bytes
            mappingsKept += 1
        }

        /// A mapping that it wants; a sum that 64 bits do not hold is too much anyway.
        package mutating func wants(_ bytes: UInt64) {
            let (sum, overflow) = bytesAdded.addingReportingOverflow(bytes)
            bytesAdded = overflow ? .max : sum
            mappingsAdded += 1
        }
    }

    /// Takes what is added; or says how many bytes the front-end may have mapped.
    ///
    /// `give` gives it back, mapping by mapping.
    package func take(_ wish: Wish) throws(MappingRefusal) {
        let most = state.withLock { state -> (bytes: UInt64, mappings: Int)? in
            let others = state.bytes - min(state.bytes, wish.bytesNow)
            // What a front-end has it may keep, or replace by as much: its guest may start anew at
            // any time.
            let bytes = max((limitBytes - min(limitBytes, others)) / 2, wish.bytesNow)
            let mappings = max(
                (Self.mappingsMax - state.mappings + wish.mappingsNow) / 2, wish.mappingsNow)
            guard wish.bytesKept <= bytes, wish.bytesAdded <= bytes - wish.bytesKept,
                wish.mappingsKept + wish.mappingsAdded <= mappings
            else { return (bytes, mappings) }
            state.bytes += wish.bytesAdded
            state.mappings += wish.mappingsAdded
            return nil
        }
        guard let most else { return }
        let (sum, overflow) = wish.bytesKept.addingReportingOverflow(wish.bytesAdded)
        throw MappingRefusal(
            "\(wish.mappingsKept + wish.mappingsAdded) regions of"
                + " \(overflow ? .max : sum) bytes in all: \(most.mappings) regions of"
                + " \(most.bytes) bytes are allowed, half of what others have left of"
                + " \(limitBytes) bytes (--vhost-memory)")
    }

    /// A mapping has gone, or has not come about.
    package func give(_ bytes: UInt64) {
        state.withLock { state in
            state.bytes -= bytes
            state.mappings -= 1
        }
    }

    /// What is mapped, in bytes.
    package var bytes: UInt64 { state.withLock { $0.bytes } }
}

/// Why memory of a front-end is not mapped.
package struct MappingRefusal: Error, Equatable, Sendable {
    /// What was wrong, with its value.
    package let text: String
    package init(_ text: String) { self.text = text }
}
