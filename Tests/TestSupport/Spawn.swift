import Glibc

/// A child process that is started, signalled and collected here and nowhere else.
///
/// Used instead of Foundation's `Process`, whose children inherit the blocked signals of whatever
/// thread starts them: a server that cannot be told to stop is of no use here.
final class ChildProcess {
    let processID: pid_t
    /// The exit status, or 128 + the signal that ended it; nil while it runs.
    private var collected: Int32?

    /// Starts a program with files as its standard streams, no signal blocked and none ignored.
    init(
        _ path: String, _ arguments: [String], environment: [String: String], stdin: String,
        stdout: String, stderr: String
    ) throws {
        // SAFETY (to the end): every C object is initialised before use and destroyed after it;
        // the string arrays end in nil and live until the call has returned.
        var actions = unsafe posix_spawn_file_actions_t()
        unsafe posix_spawn_file_actions_init(&actions)
        defer { unsafe posix_spawn_file_actions_destroy(&actions) }
        let writing = O_WRONLY | O_CREAT | O_APPEND
        unsafe posix_spawn_file_actions_addopen(&actions, 0, stdin, O_RDONLY, 0)
        unsafe posix_spawn_file_actions_addopen(&actions, 1, stdout, writing, 0o600)
        unsafe posix_spawn_file_actions_addopen(&actions, 2, stderr, writing, 0o600)

        var attributes = posix_spawnattr_t()
        unsafe posix_spawnattr_init(&attributes)
        defer { unsafe posix_spawnattr_destroy(&attributes) }
        var none = sigset_t()
        var all = sigset_t()
        unsafe sigemptyset(&none)
        unsafe sigfillset(&all)
        unsafe posix_spawnattr_setsigmask(&attributes, &none)
        unsafe posix_spawnattr_setsigdefault(&attributes, &all)
        let flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF
        unsafe posix_spawnattr_setflags(&attributes, Int16(flags))

        var argv = unsafe ([path] + arguments).map { unsafe strdup($0) }
        var envp = unsafe environment.map { unsafe strdup("\($0.key)=\($0.value)") }
        unsafe argv.append(nil)
        unsafe envp.append(nil)
        defer { unsafe (argv + envp).forEach { unsafe free($0) } }
        var pid: pid_t = 0
        let code = unsafe posix_spawn(&pid, path, &actions, &attributes, argv, envp)
        guard code == 0 else { throw TestFailure("cannot start \(path): errno \(code)") }
        processID = pid
    }

    deinit {
        signal(SIGKILL)
        while pollStatus() == nil { usleep(1000) }
    }

    /// How the process ended, or nil while it runs.
    func pollStatus() -> Int32? {
        if let collected { return collected }
        var status: Int32 = 0
        // SAFETY: `status` outlives the call.
        let result = unsafe waitpid(processID, &status, WNOHANG)
        if result == 0 { return nil }
        let signalNumber = status & 0x7f
        collected = signalNumber == 0 ? (status >> 8) & 0xff : 128 + signalNumber
        return collected
    }

    /// Sends a signal unless the process has ended, in which case its id may be another's.
    func signal(_ number: Int32) {
        if pollStatus() == nil { kill(processID, number) }
    }
}
