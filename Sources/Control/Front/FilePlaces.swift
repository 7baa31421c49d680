import Dispatch
import Foundation
package import ServerInterface
import Synchronization

extension ServeArguments {
    /// The path made absolute against the working directory.
    package static func absolutePath(_ path: String) -> String {
        guard !path.hasPrefix("/") else { return path }
        let base = FileManager.default.currentDirectoryPath
        return URL(fileURLWithPath: path, relativeTo: URL(fileURLWithPath: base, isDirectory: true))
            .standardizedFileURL.path
    }

    /// A source as a command line names it.
    package struct NamedSource: Sendable, Hashable {
        package var path: String
        package var kind: SourceKind
        /// What an adapter is to open, if one is needed.
        package var image: ImageConfiguration?
    }

    /// What a source's name means: an upstream's URI, `rbd:POOL/IMAGE`, or a path with its format.
    package static func source(
        _ name: String, format: String? = nil
    ) throws(ControlError) -> NamedSource {
        let found = try imageFormat(format)
        if UpstreamAddress.isAddress(name) {
            guard found == .raw else {
                throw .invalidArgument(what: "format", detail: "an NBD export is 'raw'")
            }
            do throws(UpstreamAddressFault) {
                return NamedSource(path: try UpstreamAddress(uri: name).uri, kind: .network)
            } catch {
                throw .invalidArgument(what: "source", detail: error.detail)
            }
        }
        if name.hasPrefix("rbd:") {
            guard found == .raw, let rbd = RBDImage(name: String(name.dropFirst(4))) else {
                throw .invalidArgument(
                    what: "source '\(name)'",
                    detail: "it must be rbd:POOL/IMAGE or rbd:POOL/NAMESPACE/IMAGE, and raw")
            }
            return NamedSource(
                path: name, kind: .network,
                image: ImageConfiguration(layers: [ImageLayer(.raw, .rbd(rbd))]))
        }
        let path = absolutePath(name)
        let kind = sourceKind(of: path)
        guard found != .raw else { return NamedSource(path: path, kind: kind) }
        let place: ImagePlace = kind == .block ? .block(path: path) : .file(path: path)
        return NamedSource(
            path: path, kind: kind, image: ImageConfiguration(layers: [ImageLayer(found, place)]))
    }

    /// Formats that can be named where no secret can.
    package static let formats = ImageFormat.allCases.filter { $0 != .luks }.map(\.rawValue)

    private static func imageFormat(_ text: String?) throws(ControlError) -> ImageFormat {
        guard let text else { return .raw }
        guard formats.contains(text), let format = ImageFormat(rawValue: text) else {
            throw .invalidArgument(
                what: "format '\(text)'",
                detail: "it must be one of \(formats.joined(separator: ", "))")
        }
        return format
    }

    /// Block device or regular file; symbolic links are followed.
    ///
    /// What is missing counts as a file, and so
    /// does a path that does not answer within two seconds.
    package static func sourceKind(of path: String) -> SourceKind {
        let found = FoundKind()
        let answered = DispatchSemaphore(value: 0)
        // A path that hangs takes this thread with it, and nothing else.
        Thread.detachNewThread {
            found.kind.store(kindOrHang(of: path) == .block ? 1 : 0, ordering: .relaxed)
            answered.signal()
        }
        guard answered.wait(timeout: lookEnd) == .success else { return .file }
        return found.kind.load(ordering: .relaxed) == 1 ? .block : .file
    }

    // Many paths that hang take no longer than one: those behind the first get what is left, or a
    // moment.
    private static var lookEnd: DispatchTime {
        let end = firstLook.withLock { first in
            let start = first ?? .now()
            first = start
            return start + 2.0
        }
        return max(end, .now() + 0.1)
    }

    private static let firstLook = Mutex<DispatchTime?>(nil)

    private final class FoundKind: Sendable {
        let kind = Atomic<Int>(0)
    }

    private static func kindOrHang(of path: String) -> SourceKind {
        let real = URL(fileURLWithPath: path).resolvingSymlinksInPath().path
        let type = try? FileManager.default.attributesOfItem(atPath: real)[.type]
        return type as? FileAttributeType == .typeBlockSpecial ? .block : .file
    }
}

/// Default directories and sockets.
package enum DefaultPlaces {
    /// The directory that a service manager has made for the server: the first of those that
    /// `STATE_DIRECTORY` or `RUNTIME_DIRECTORY` lists, nil if it lists none.
    ///
    /// Clients do not look there: run by another service, they would find that one's.
    package static func ofService(_ list: String?) -> String? {
        absolute(list?.split(separator: ":").first.map(String.init))
    }

    /// `/var/lib/nbdpull` for root; else below `XDG_STATE_HOME` (default `~/.local/state`).
    package static func stateDirectory(
        _ environment: [String: String], isRoot: Bool
    ) throws(ControlError) -> String {
        if isRoot { return "/var/lib/nbdpull" }
        if let home = absolute(environment["XDG_STATE_HOME"]) { return home + "/nbdpull" }
        if let home = absolute(environment["HOME"]) { return home + "/.local/state/nbdpull" }
        throw .invalidArgument(
            what: "state directory", detail: "set XDG_STATE_HOME or give --state-dir")
    }

    /// `/run/nbdpull` for root; else below `XDG_RUNTIME_DIR`.
    package static func runDirectory(
        _ environment: [String: String], isRoot: Bool
    ) throws(ControlError) -> String {
        if isRoot { return "/run/nbdpull" }
        if let runtime = absolute(environment["XDG_RUNTIME_DIR"]) { return runtime + "/nbdpull" }
        throw .invalidArgument(
            what: "run directory", detail: "set XDG_RUNTIME_DIR or give --run-dir (or --socket)")
    }

    /// The control socket a client talks to: `--socket`, `NBDPULL_SOCKET`, else the run
    /// directory's.
    package static func controlSocket(
        option: String?, _ environment: [String: String], isRoot: Bool
    ) throws(ControlError) -> String {
        if let option { return option }
        if let path = environment["NBDPULL_SOCKET"], !path.isEmpty { return path }
        if let path = environment["NBDPULL_RUN_DIR"], !path.isEmpty {
            return path + "/control.sock"
        }
        return try runDirectory(environment, isRoot: isRoot) + "/control.sock"
    }

    // The XDG rules: a relative path counts as unset.
    private static func absolute(_ path: String?) -> String? {
        guard let path, path.hasPrefix("/") else { return nil }
        return path
    }
}
