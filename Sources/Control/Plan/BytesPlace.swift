import ServerInterface

/// Where the bytes of a disk, of scratch or of a target lie, as far as its name says it.
enum BytesPlace: Sendable, Hashable {
    /// A path of this host; without a kind it may be either.
    case local(path: String, SourceKind?)
    /// An export of an NBD server.
    case export(UpstreamAddress)
    /// Storage that an adapter reaches over a network, by its text, and its cluster's monitors.
    case image(String, monitors: Set<String> = [])

    init(_ place: ImagePlace) {
        switch place {
        case .file(let path): self = .local(path: path, .file)
        case .block(let path): self = .local(path: path, .block)
        case .rbd, .iscsi, .gluster: self = .image(place.text, monitors: place.monitors)
        }
    }

    /// The same for the same place, unless that has several names.
    var name: String {
        switch self {
        case .local(let path, _): BackupPlanner.lexicallyNormal(path)
        case .export(let address): address.placeText
        case .image(let text, _): text
        }
    }

    /// Whether both may be one place, as far as their names say it.
    func mayBe(_ other: BytesPlace) -> Bool {
        guard name == other.name else { return false }
        guard case .image(_, let monitors) = self, case .image(_, let others) = other else {
            return true
        }
        return ImagePlace.mayBeOneCluster(monitors, others)
    }

    /// The path by which it is told that two names are of one place; nil: nothing on this host
    /// tells.
    var path: String? {
        switch self {
        case .local(let path, _): return path
        case .export(let address):
            guard case .unix(let path) = address.place else { return nil }
            return path
        case .image: return nil
        }
    }

    /// Whether both are one if their paths lead to the same file, device (`isBlock`) or socket.
    func isComparable(to other: BytesPlace, isBlock: Bool) -> Bool {
        switch (self, other) {
        case (.local, .local(_, let kind)): kind == nil || (kind == .block) == isBlock
        case (.export(let address), .export(let other)): address.name == other.name
        default: false
        }
    }
}

extension DomainDisk {
    /// Where its bytes lie: those of all layers of an image.
    var places: [BytesPlace] {
        if let image { return image.allPlaces.map { BytesPlace($0) } }
        // One that is not served is the machine's all the same.
        let texts = unserved == nil ? [path] : [path, unserved?.source]
        return texts.compactMap { $0 }.map { text -> BytesPlace in
            if text.hasPrefix("/") {
                return .local(
                    path: text, isKindAssumed || unserved != nil || kind == .network ? nil : kind)
            }
            if let address = try? UpstreamAddress(uri: text) { return .export(address) }
            return .image("rbd:" + text)
        }
    }

    /// What is written to when it is: images that it builds on are not.
    var writablePlaces: [BytesPlace] {
        image?.layers.first?.places.map { BytesPlace($0) } ?? places
    }
}

extension ScratchConfiguration {
    /// Where it lies.
    var places: [BytesPlace] {
        if let image { return image.allPlaces.map { BytesPlace($0) } }
        guard kind == .network else { return [.local(path: path, kind)] }
        guard let address = try? UpstreamAddress(uri: path) else { return [] }
        return [.export(address)]
    }
}
