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
    init?(_ image: ImageConfiguration, for disk: DiskConfiguration, file: String) {
        guard !disk.readOnly, case .rbd(let place)? = image.layers.first?.place,
            let program = Adapters.path(of: "rbd")
        else { return nil }
        self.program = program
        self.image = place
        self.file = file
    }

    /// Throws when somebody else has the image open.
    ///
    /// `own`: how many are this server's, besides those that it has noted.
    func check(own count: Int) throws(AdapterFault) {
        let known = noted
        guard let watchers else { return }
        let others = watchers.subtracting(known)
        guard others.count > count else { return }
        throw AdapterFault(
            "image '\(image.name)' is open elsewhere: "
                + others.map(\.text).sorted().joined(separator: ", ") + lockText
                + ". Let that server go of it first (a host that has died is forgotten after half"
                + " a minute)")
    }

    /// Takes note of who has it open now that this server has.
    func note() {
        guard let watchers, !watchers.isEmpty,
            let data = try? JSONEncoder().encode(watchers)
        else { return }
        try? data.write(to: URL(fileURLWithPath: file), options: .atomic)
    }

    private var noted: Set<Watcher> {
        guard let data = FileManager.default.contents(atPath: file) else { return [] }
        return (try? JSONDecoder().decode(Set<Watcher>.self, from: data)) ?? []
    }

    private var watchers: Set<Watcher>? {
        answer(["status", image.name], as: Status.self).map { Set($0.watchers ?? []) }
    }

    /// Who holds the exclusive lock.
    private var lockText: String {
        let locks = answer(["lock", "ls", image.name], as: [Lock].self) ?? []
        guard let lock = locks.first else { return "" }
        return "; its exclusive lock '\(lock.id)' is held by \(lock.locker) at \(lock.address)"
    }

    private func answer<Value: Decodable>(_ words: [String], as type: Value.Type) -> Value? {
        var arguments = words + ["--format", "json"]
        if let path = image.configuration { arguments += ["--conf", path] }
        if let user = image.user { arguments += ["--id", user] }
        if let path = image.keyFile { arguments += ["--keyfile", path] }
        if !image.hosts.isEmpty {
            arguments += [
                "--mon-host", image.hosts.map { "\($0.name):\($0.port)" }.joined(separator: ","),
            ]
        }
        guard
            let output = ChildProcess.output(
                of: program, arguments, milliseconds: Self.milliseconds)
        else { return nil }
        return try? JSONDecoder().decode(type, from: Data(output))
    }
}
