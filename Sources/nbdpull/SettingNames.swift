import Control
import Foundation
import Synchronization

/// Which settings there are, and which the sources name.
///
/// Those there are, are those that were asked for: a new setting needs no second list.
final class SettingNames: Sendable {
    private struct Names {
        var known: Set<String> = []
        var inFile: Set<String> = []
        /// Keys of the file's outermost level, whatever their values are.
        var outermost: Set<String> = []
        /// What a JSON file has there; the library takes numbers for truth values and the reverse.
        var kinds: [String: JSONKind] = [:]
    }

    /// The kind of a value in JSON.
    enum JSONKind: Decodable {
        case bool, number, text, other

        init(from decoder: any Decoder) throws {
            let value = try decoder.singleValueContainer()
            if (try? value.decode(Bool.self)) != nil {
                self = .bool
            } else if (try? value.decode(Double.self)) != nil {
                self = .number
            } else {
                self = (try? value.decode(String.self)) == nil ? .other : .text
            }
        }
    }

    private let names = Mutex(Names())

    /// Variables that are no settings of the server: the clients', and those of builds and tests.
    private static let otherVariables: Set<String> = [
        "NBDPULL_CONFIG", "NBDPULL_SOCKET", "NBDPULL_BINARY", "NBDPULL_JOBS", "NBDPULL_SEED",
        "NBDPULL_STRESS_SECONDS", "NBDPULL_WALK", "NBDPULL_FUZZ", "NBDPULL_FUZZ_DIRECTORY",
        "NBDPULL_FUZZ_TARGET",
    ]

    /// Settings of earlier versions, and what became of them.
    private static let goneSettings = [
        "lend-pages": "pages of disks that a machine may write are always copied; remove it"
    ]

    /// The refusal of a setting that is gone, `what` as its user has written it.
    static func gone(_ what: String, setting: String) -> ControlError {
        .invalidArgument(
            what: what,
            detail: "this setting is gone: \(goneSettings[setting] ?? "remove it")")
    }

    /// Notes a setting that there is.
    func note(known key: String) { names.withLock { _ = $0.known.insert(key) } }

    /// Notes a key of the file; the answer says that its value is no secret.
    func note(key: String) -> Bool {
        names.withLock { _ = $0.inFile.insert(key) }
        return false
    }

    /// Notes the outermost keys of the file's text: those with an empty value are not told of
    /// otherwise.
    func note(text: String, isJSON: Bool) {
        var keys: [String] = []
        if isJSON {
            let value = try? JSONSerialization.jsonObject(with: Data(text.utf8))
            keys = (value as? [String: Any]).map { Array($0.keys) } ?? []
            let kinds = try? JSONDecoder().decode([String: JSONKind].self, from: Data(text.utf8))
            names.withLock { $0.kinds = kinds ?? [:] }
        } else {
            for line in text.split(whereSeparator: \.isNewline) {
                guard let first = line.first, first.isLetter || first == "_",
                    let colon = line.firstIndex(of: ":")
                else { continue }
                let behind = line[line.index(after: colon)...].first
                guard behind?.isWhitespace ?? true else { continue }
                keys.append(line[..<colon].trimmingCharacters(in: .whitespaces))
            }
        }
        names.withLock { $0.outermost.formUnion(keys) }
    }

    /// Whether the file, if it is JSON and names the setting, has one of these kinds there.
    func hasKind(_ kinds: Set<JSONKind>, _ key: String) -> Bool {
        names.withLock { $0.kinds[key] }.map(kinds.contains) ?? true
    }

    /// Throws when the file or the environment names what is no setting, or a key has no value.
    func refuseUnknown(file: String?, _ environment: [String: String]) throws(ControlError) {
        let names = names.withLock { $0 }
        let known = names.known.sorted()
        for key in names.inFile.union(names.outermost).sorted() where !names.known.contains(key) {
            let what = "setting '\(key)' of '\(file ?? "")'"
            if Self.goneSettings[key] != nil { throw Self.gone(what, setting: key) }
            throw .invalidArgument(
                what: what,
                detail: "there is none of that name: \(Spelling.advice(key, known: known))")
        }
        for key in names.outermost.sorted() where !names.inFile.contains(key) {
            throw .invalidArgument(
                what: "setting '\(key)' of '\(file ?? "")'",
                detail: "it has no value that can be read")
        }
        let variables = known.map(Self.variable)
        for name in environment.keys.sorted()
        where name.hasPrefix("NBDPULL_") && !variables.contains(name)
            && !Self.otherVariables.contains(name) && !Self.isOfService(name)
        {
            let what = "environment variable '\(name)'"
            if let key = Self.goneSettings.keys.first(where: { Self.variable($0) == name }) {
                throw Self.gone(what, setting: key)
            }
            throw .invalidArgument(
                what: what,
                detail: "no setting is called so: \(Spelling.advice(name, known: variables))")
        }
    }

    /// Variables that Kubernetes sets in every container for a service named nbdpull.
    private static func isOfService(_ name: String) -> Bool {
        name == "NBDPULL_PORT" || name.hasPrefix("NBDPULL_PORT_")
            || name.hasPrefix("NBDPULL_SERVICE_")
    }

    private static func variable(_ key: String) -> String {
        "NBDPULL_" + key.uppercased().replacing("-", with: "_")
    }
}
