import NIOCore
package import ServerInterface

/// Where the live exports of this server are reached, as a machine's XML says it.
package struct LivePlaces: Sendable, Hashable {
    /// The port of a `<host>` that names none.
    private static let defaultPort: UInt16 = 10809

    private let unixPaths: Set<String>
    private let networkPlaces: [NetworkPlace]
    private let hostName: String
    private let interfaces: @Sendable () -> Set<String>

    private struct NetworkPlace: Sendable, Hashable {
        let address: String
        let port: UInt16
    }

    /// `endpoints` are those that are listened on; `interfaces` tells this machine's addresses.
    package init(
        _ endpoints: [ListenEndpoint], hostName: String = HostFacts().name,
        interfaces: @escaping @Sendable () -> Set<String> = Self.addressesOfThisMachine
    ) {
        var paths: Set<String> = []
        var places: [NetworkPlace] = []
        for endpoint in endpoints {
            switch endpoint {
            case .unix(let path, _): paths.insert(Self.plain(path))
            case .tcp(let host, let port):
                places.append(
                    NetworkPlace(address: Self.plainHost(host), port: port ?? Self.defaultPort))
            }
        }
        unixPaths = paths
        networkPlaces = places
        self.hostName = hostName.lowercased()
        self.interfaces = interfaces
    }

    /// Whether the `<source>` of an NBD disk leads to this server.
    ///
    /// No name server is asked: a host is known by this machine's own name and its addresses.
    func include(_ source: XMLElement) -> Bool {
        let hosts = source.all("host")
        guard let host = hosts.first, hosts.count == 1 else { return false }
        switch host.attribute("transport") ?? "tcp" {
        case "unix":
            guard let path = host.attribute("socket") else { return false }
            return unixPaths.contains(Self.plain(path))
        case "tcp":
            guard let name = host.attribute("name"),
                let port = host.attribute("port").map(UInt16.init) ?? Self.defaultPort
            else { return false }
            return reaches(Self.plainHost(name), port)
        default: return false
        }
    }

    private func reaches(_ name: String, _ port: UInt16) -> Bool {
        networkPlaces.contains { place in
            guard place.port == port else { return false }
            if place.address == name { return true }
            let isEverywhere = Self.wildcards.contains(place.address)
            if Self.isLoopback(name) {
                return isEverywhere || Self.isLoopback(place.address)
            }
            let isThisMachine =
                name == hostName || name == Self.firstLabel(hostName)
                || interfaces().contains(name)
            return isEverywhere && isThisMachine
        }
    }

    private static let wildcards: Set<String> = ["0.0.0.0", "::", "*", ""]

    private static func isLoopback(_ name: String) -> Bool {
        name == "localhost" || name == "::1" || name.hasPrefix("127.")
    }

    private static func firstLabel(_ name: String) -> String {
        String(name.prefix { $0 != "." })
    }

    // `/var/run` is a link to `/run` everywhere that nbdpull runs.
    private static func plain(_ path: String) -> String {
        let plain = BackupPlanner.lexicallyNormal(path)
        return plain.hasPrefix("/var/run/") ? String(plain.dropFirst(4)) : plain
    }

    private static func plainHost(_ name: String) -> String {
        let lower = name.lowercased()
        guard lower.hasPrefix("["), lower.hasSuffix("]") else { return lower }
        return String(lower.dropFirst().dropLast())
    }

    /// Addresses of this machine's interfaces; none when the kernel does not tell.
    package static func addressesOfThisMachine() -> Set<String> {
        let devices = (try? System.enumerateDevices()) ?? []
        return Set(devices.compactMap { $0.address?.ipAddress?.lowercased() })
    }

    package static func == (first: LivePlaces, second: LivePlaces) -> Bool {
        first.unixPaths == second.unixPaths && first.networkPlaces == second.networkPlaces
            && first.hostName == second.hostName
    }

    package func hash(into hasher: inout Hasher) {
        hasher.combine(unixPaths)
        hasher.combine(networkPlaces)
    }
}
