import Foundation
import ServerInterface

/// Who has an image of a Ceph cluster open for writing, by the watch that each of them keeps on it.
///
/// Ceph's exclusive lock does not keep a second writer out: it passes from one to the other with
/// each write. So the watchers are looked at, before the image is opened and once it is: two that
/// come at the same time see each other. Those of a program of this server that was killed are
/// known from a file, as the cluster takes half a minute to forget them.
struct RBDWatch: Sendable {
    /// One who has it open.
    struct Watcher: Sendable, Hashable, Codable {
        var address: String
        var client: UInt64
        var cookie: UInt64

        var text: String { "client.\(client) at \(address)" }
    }

    /// What keeps an image closed, or does not.
    enum Fault: Error, Sendable, Hashable {
        /// Somebody else has it open.
        case taken(String)
        /// Who has it open cannot be found out.
        case unknown(String)
    }

    private struct Status: Codable { var watchers: [Watcher]? }
    private struct Lock: Codable {
        var id: String
        var locker: String
        var address: String
    }

    private let program: String
    private let image: RBDImage
    /// Where this server's own watchers are kept.
    private let file: String

    /// A cluster that takes longer says nothing.
    private static let milliseconds = 10_000

    /// Nil for other images, those that are only read, and where the program `rbd` is not there.
    init?(
        _ image: ImageConfiguration, for disk: DiskConfiguration, file: String,
        program: String? = Adapters.path(of: "rbd")
    ) {
        guard !disk.readOnly, case .rbd(let place)? = image.layers.first?.place, let program
        else { return nil }
        self.program = program
        self.image = place
        self.file = file
    }

    /// Who has the image open before a program of this server opens it.
    ///
    /// - Throws: when somebody else has.
    func before() throws(Fault) -> Set<Watcher> {
        let (found, noted) = (try watchers(), noted)
        try refuse(found.filter { !noted.contains($0.client) }, beyond: 0)
        return found
    }

    /// Once it is open: who has come since is this server's program, which is noted; the next
    /// server must not take it for somebody else's.
    ///
    /// - Throws: when somebody else has come at the same time.
    func after(_ before: Set<Watcher>, unless isStopped: () -> Bool) throws(Fault) {
        let (found, noted) = (try watchers(), noted)
        let known = noted.union(before.map(\.client))
        let new = found.filter { !known.contains($0.client) }
        try refuse(new, beyond: 1)
        let own = found.filter { noted.contains($0.client) }.union(new)
        // Once it is stopped the note is the next server's.
        guard !isStopped(), let data = try? JSONEncoder().encode(own) else { return }
        try? data.write(to: URL(fileURLWithPath: file), options: .atomic)
    }

    private func refuse(_ others: Set<Watcher>, beyond count: Int) throws(Fault) {
        guard others.count > count else { return }
        throw .taken(
            "image '\(image.name)' is open elsewhere: "
                + others.map(\.text).sorted().joined(separator: ", ") + lockText
                + ". Let that server go of it first (a host that has died is forgotten after half"
                + " a minute)")
    }

    /// Clients that are this server's; one that has lost its connection comes back as the same.
    private var noted: Set<UInt64> {
        guard let data = FileManager.default.contents(atPath: file) else { return [] }
        let watchers = (try? JSONDecoder().decode(Set<Watcher>.self, from: data)) ?? []
        return Set(watchers.map(\.client))
    }

    private func watchers() throws(Fault) -> Set<Watcher> {
        Set(try answer(["status", image.name], as: Status.self).watchers ?? [])
    }

    /// Who holds the exclusive lock.
    private var lockText: String {
        let locks = (try? answer(["lock", "ls", image.name], as: [Lock].self)) ?? []
        guard let lock = locks.first else { return "" }
        return "; its exclusive lock '\(lock.id)' is held by \(lock.locker) at \(lock.address)"
    }

    private func answer<Value: Decodable>(
        _ words: [String], as type: Value.Type
    ) throws(Fault) -> Value {
        var arguments = words + ["--format", "json"]
        if let path = image.configuration { arguments += ["--conf", path] }
        if let user = image.user { arguments += ["--id", user] }
        if let path = image.keyFile { arguments += ["--keyfile", path] }
        if !image.hosts.isEmpty {
            arguments += [
                "--mon-host", image.hosts.map { "\($0.name):\($0.port)" }.joined(separator: ","),
            ]
        }
        let command = "'\(program) \(words.joined(separator: " "))'"
        do {
            let output = try ChildProcess.output(
                of: program, arguments, milliseconds: Self.milliseconds)
            return try JSONDecoder().decode(type, from: Data(output))
        } catch let fault as ChildProcess.Unanswered {
            throw .unknown("\(command): \(Self.text(fault.outcome))")
        } catch {
            throw .unknown("\(command): its answer cannot be read")
        }
    }

    private static func text(_ outcome: ChildProcess.Outcome) -> String {
        switch outcome {
        case .succeeded: "it has ended"
        case .failed(let status): "it has failed with status \(status)"
        case .killed(let signal): "it was killed by signal \(signal)"
        case .timedOut: "no answer within \(milliseconds / 1000) s"
        case .notStarted(let number): "it cannot be started (errno \(number))"
        }
    }
}
