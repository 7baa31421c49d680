import Control
import Foundation
import Glibc

/// What the first bytes of a file look like.
///
/// A hint for people, and never a reason to open a file as something: a machine writes to its raw disk
/// what it likes, and an image may name other files of this host.
enum ImageMagic {
    private static let magics = [
        "QFI\u{FB}": "qcow2", "KDMV": "vmdk", "vhdxfile": "vhdx", "QED\0": "qed",
    ]

    /// The format that a file or device looks like, or nil.
    static func look(at path: String) throws(ControlError) -> String? {
        do {
            // A pipe has nothing to show, and is not waited for.
            let descriptor = try SystemCalls.open(path, flags: O_RDONLY | O_NONBLOCK)
            let head = try FileHandle(fileDescriptor: descriptor.raw).read(upToCount: 8)
            return head.flatMap { format(of: $0) }
        } catch {
            let cause = (error as NSError).userInfo[NSUnderlyingErrorKey] as? NSError
            let number = (error as? SystemCalls.Failure)?.number ?? cause.map { Int32($0.code) }
            let reason = number.map { SystemCalls.errorText($0) }
            throw .invalidArgument(
                what: "image '\(path)'", detail: "cannot be read: \(reason ?? "\(error)")")
        }
    }

    private static func format(of head: Data) -> String? {
        magics.first { magic, _ in
            head.starts(with: magic.unicodeScalars.map { UInt8(truncatingIfNeeded: $0.value) })
        }?.value
    }
}
