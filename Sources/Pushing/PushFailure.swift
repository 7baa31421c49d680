import Glibc

/// Why a target was not written, for people: what, and the detail.
package struct PushFailure: Error, Sendable, Hashable {
    package let text: String

    package init(_ text: String) { self.text = text }

    /// A failed call on a file, by the errno that it has left.
    static func call(_ name: String, _ path: String, _ number: Int32 = errno) -> PushFailure {
        // SAFETY: strerror's text is copied before any other call.
        let detail = unsafe strerror(number).map { unsafe String(cString: $0) } ?? "error \(number)"
        return PushFailure("'\(path)': \(name): \(detail)")
    }
}
