import Glibc
import ServerInterface
import Synchronization

/// Sees to it that a target gives its room back when it fails, whatever the reason, and fails when
/// machines need the room.
final class RoomGuard: Sendable {
    private enum Held: Sendable {
        case nothing
        case file(RawTarget)
        case target(PushTarget)
    }

    private let held = Mutex(Held.nothing)
    private let room = Mutex<MachineRoom?>(nil)
    private let progress: PushProgress
    private let say: @Sendable (PushFailure) -> Void

    private static let lookMicroseconds: UInt32 = 20_000

    /// `say` gets the first reason, once the room has been given back.
    init(_ progress: PushProgress, say: @escaping @Sendable (PushFailure) -> Void) {
        self.progress = progress
        self.say = say
    }

    /// The file is open; a failure empties it from here on.
    func prepared(_ target: PreparedTarget) {
        held.withLock { $0 = target.target.map { .target($0) } ?? .file(target.file) }
        if let known = room.withLock({ $0 }) { target.file.room.set(known) }
    }

    func begun(_ target: PushTarget) { held.withLock { $0 = .target(target) } }

    func set(_ value: MachineRoom) {
        room.withLock { $0 = value }
        file?.room.set(value)
    }

    /// For people.
    var path: String { file?.forPrograms.path ?? "the target" }

    private var file: RawTarget? {
        switch held.withLock({ $0 }) {
        case .nothing: nil
        case .file(let file): file
        case .target(let target): target.file
        }
    }

    /// Looks for as long as the process lives: a copy may be slow, and machines take room, too.
    func watch() {
        while true {
            usleep(Self.lookMicroseconds)
            do throws(PushFailure) {
                try file?.room.look()
            } catch {
                fail(error)
                return
            }
        }
    }

    /// The target is whole and keeps its room; false when it has given that back.
    func keep() -> Bool {
        guard case .target(let target) = held.withLock({ $0 }) else { return false }
        return target.keep()
    }

    /// Gives the room back and says why; nothing when the target is whole by now.
    func fail(_ reason: PushFailure) {
        progress.fail(reason)
        switch held.withLock({ $0 }) {
        case .nothing: break
        case .file(let file): file.empty()
        case .target(let target): guard target.giveBack() else { return }
        }
        say(progress.firstFailure ?? reason)
    }
}
