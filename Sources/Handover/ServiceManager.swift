import Foundation
package import ServerInterface
import SystemLayer

/// The service manager that started this server, if one did: it is told of the server's state, and
/// keeps the server's sockets for the next one (`sd_notify(3)`, `FileDescriptorStoreMax=`).
package struct ServiceManager: Sendable {
    /// In front of the names of sockets that it keeps for us.
    package static let storedPrefix = "nbdpull-"
    /// The longest name that it takes, in bytes.
    private static let nameBytesMax = 255

    private let path: String?

    package init(_ environment: [String: String]) {
        path = environment["NOTIFY_SOCKET"].flatMap { $0.isEmpty ? nil : $0 }
    }

    /// Whether there is one.
    package var isThere: Bool { path != nil }

    /// Tells it something, such as `READY=1`; one that cannot be reached is no reason to stop.
    package func tell(_ text: String, passing descriptors: [Int32] = []) {
        guard let path else { return }
        do throws(SystemFault) {
            try MessageSocket.datagrams(to: path).send(Array(text.utf8), passing: descriptors)
        } catch {
            return
        }
    }

    /// It begins to reload; `READY=1` follows.
    package func tellReloading() {
        tell("RELOADING=1\nMONOTONIC_USEC=\(MonotonicClock.now() / 1000)")
    }

    /// Has it keep sockets that come, and forget those that go.
    package func keep(_ sockets: SocketKeep) {
        guard isThere else { return }
        sockets.observe { change in
            switch change {
            case .added(let socket):
                guard let name = Self.name(of: socket.place) else { return }
                tell("FDSTORE=1\nFDNAME=\(name)", passing: [socket.descriptor])
            case .removed(let place):
                guard let name = Self.name(of: place) else { return }
                tell("FDSTOREREMOVE=1\nFDNAME=\(name)")
            }
        }
    }

    /// Forgets sockets that it has kept and nobody wants any more.
    package func forget(_ sockets: [SocketKeep.Socket]) {
        for socket in sockets {
            guard let name = Self.name(of: socket.place) else { continue }
            tell("FDSTOREREMOVE=1\nFDNAME=\(name)")
        }
    }

    /// The sockets that it has kept and now passes to this process.
    package static func stored(_ environment: [String: String]) -> [SocketKeep.Socket] {
        guard let owner = environment["LISTEN_PID"], Int32(owner) == getpid(),
            let count = environment["LISTEN_FDS"].flatMap({ Int32($0) }), count > 0
        else { return [] }
        let names = (environment["LISTEN_FDNAMES"] ?? "").split(
            separator: ":", omittingEmptySubsequences: false)
        return zip(names, firstDescriptor..<(firstDescriptor + count)).compactMap {
            place(named: String($0)).map { [number = $1] place in
                .init(place: place, descriptor: number)
            }
        }
    }

    private static let firstDescriptor: Int32 = 3

    /// Nil for what it need not keep, and for a name that is too long.
    private static func name(of place: SocketPlace) -> String? {
        guard place.role != .passed,
            let address = place.address.addingPercentEncoding(withAllowedCharacters: plain)
        else { return nil }
        let name = "\(storedPrefix)\(place.role.rawValue)=\(address)"
        return name.utf8.count <= nameBytesMax ? name : nil
    }

    private static func place(named name: String) -> SocketPlace? {
        guard name.hasPrefix(storedPrefix), let equals = name.firstIndex(of: "=") else {
            return nil
        }
        let role = name[name.index(name.startIndex, offsetBy: storedPrefix.count)..<equals]
        guard let role = SocketPlace.Role(rawValue: String(role)),
            let address = String(name[name.index(after: equals)...]).removingPercentEncoding
        else { return nil }
        return SocketPlace(role, address)
    }

    private static let plain = CharacterSet(
        charactersIn: "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-")
}
