import SystemLayer

/// The locks by which users of a disk image tell each other what they do with it, byte for byte
/// those of qemu.
///
/// A process that uses a permission holds a shared lock on byte 100 + its number; one that does not
/// tolerate others to use it holds a shared lock on byte 200 + its number. Both sides first take
/// their locks, then look for a conflict, so that of two that come at once at least one sees the
/// other.
package enum SourceLock {
    private enum Permission: UInt64, CaseIterable {
        case consistentRead = 0
        case write = 1
        case resize = 3

        var text: String {
            switch self {
            case .consistentRead: "read it and rely on its content"
            case .write: "write it"
            case .resize: "resize it"
            }
        }
    }

    private static let usedBase: UInt64 = 100
    private static let refusedBase: UInt64 = 200

    /// Takes the locks of a writer or a reader; they last until the descriptor is closed.
    ///
    /// Nobody else may write or resize while we serve, not even when we only read: a backup of a
    /// file that changes behind our back would be a backup of no instant at all.
    package static func acquire(
        _ descriptor: Int32, forWriting: Bool
    ) throws(SourceFault) {
        let used: [Permission] =
            forWriting ? [.consistentRead, .write, .resize] : [.consistentRead]
        let refused: [Permission] = [.write, .resize]
        do throws(SystemFault) {
            for permission in used {
                try ByteRangeLock.share(descriptor, byte: usedBase + permission.rawValue)
            }
            for permission in refused {
                try ByteRangeLock.share(descriptor, byte: refusedBase + permission.rawValue)
            }
        } catch {
            throw error.errno == Errno.again || error.errno == Errno.accessDenied
                ? inUse(descriptor, "another process holds its lock bytes") : .system(error)
        }
        for permission in used {
            if try isHeld(descriptor, refusedBase + permission.rawValue) {
                throw inUse(
                    descriptor,
                    "another process uses it and does not let others \(permission.text)")
            }
        }
        for permission in refused {
            if try isHeld(descriptor, usedBase + permission.rawValue) {
                throw inUse(
                    descriptor, "another process has it open and may \(permission.text)")
            }
        }
    }

    /// Whether a fault of `acquire` says that the file system has no locks: then nobody holds one.
    package static func isMissing(_ fault: SourceFault) -> Bool {
        guard case .system(let fault) = fault else { return false }
        return [Errno.notImplemented, Errno.notSupported, Errno.noLocks, Errno.invalid]
            .contains(fault.errno)
    }

    private static func inUse(_ descriptor: Int32, _ detail: String) -> SourceFault {
        .inUse(detail: detail, node: FileCalls.node(descriptor))
    }

    private static func isHeld(
        _ descriptor: Int32, _ byte: UInt64
    ) throws(SourceFault) -> Bool {
        do throws(SystemFault) {
            return try ByteRangeLock.isHeldByOther(descriptor, byte: byte)
        } catch {
            throw .system(error)
        }
    }
}
