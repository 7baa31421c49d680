import Foundation
import Glibc

/// Starts processes: with a group of their own, no signal blocked or ignored, and no open file but
/// those that they are given.
enum ChildStart {
    /// Starts a program.
    ///
    /// `files`: numbers here, and those that they have there. `arguments`: the program's name
    /// first.
    static func spawn(
        _ program: String, _ arguments: [String], environment: [String: String],
        files: [(here: Int32, there: Int32)]
    ) -> Result<pid_t, SystemCalls.Failure> {
        var actions = unsafe posix_spawn_file_actions_t()
        var attributes = posix_spawnattr_t()
        // SAFETY: both are initialised before they are used and destroyed once at the end; the sets
        // of signals are locals that the calls copy.
        unsafe posix_spawn_file_actions_init(&actions)
        unsafe posix_spawnattr_init(&attributes)
        defer {
            unsafe posix_spawn_file_actions_destroy(&actions)
            unsafe posix_spawnattr_destroy(&attributes)
        }
        for file in files {
            unsafe posix_spawn_file_actions_adddup2(&actions, file.here, file.there)
        }
        for leaked in inheritable() { unsafe posix_spawn_file_actions_addclose(&actions, leaked) }
        var signals = sigset_t()
        unsafe sigemptyset(&signals)
        unsafe posix_spawnattr_setsigmask(&attributes, &signals)
        unsafe sigfillset(&signals)
        unsafe posix_spawnattr_setsigdefault(&attributes, &signals)
        // A group of its own: it can be ended with everything that it has started.
        unsafe posix_spawnattr_setpgroup(&attributes, 0)
        let flags = POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF
        unsafe posix_spawnattr_setflags(&attributes, Int16(truncatingIfNeeded: flags))
        // SAFETY: both lists end in nil and, with their texts, live until the call has returned.
        var words: [UnsafeMutablePointer<CChar>?] = unsafe arguments.map { unsafe strdup($0) }
        unsafe words.append(nil)
        var variables: [UnsafeMutablePointer<CChar>?] = unsafe environment.map {
            unsafe strdup("\($0.key)=\($0.value)")
        }
        unsafe variables.append(nil)
        defer { unsafe (words + variables).forEach { unsafe free($0) } }
        var child: pid_t = 0
        let result = unsafe posix_spawn(&child, program, &actions, &attributes, words, variables)
        guard result == 0 else {
            return .failure(SystemCalls.Failure(call: "posix_spawn", number: result))
        }
        return .success(child)
    }

    /// Open files that a program would inherit, such as sockets that the service manager has
    /// passed.
    private static func inheritable() -> [Int32] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")) ?? []
        return names.compactMap { Int32($0) }.filter { number in
            guard number > STDERR_FILENO else { return false }
            let flags = fcntl(number, F_GETFD)
            return flags >= 0 && flags & FD_CLOEXEC == 0
        }
    }
}
