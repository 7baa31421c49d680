import LibvirtProtocol

/// Amounts of scratch that clients want to be told of (`virDomainSetBlockThreshold`).
///
/// Scratch in use is polled, as long as somebody has set a threshold.
actor ScratchThresholds {
    /// Thresholds at once; each is gone with its job.
    static let countMax = 1024
    /// Between two looks.
    private static let period = Duration.milliseconds(250)

    private struct Threshold {
        let uuid: String
        let name: String
        /// As the client has named it: `vda[7]`.
        let device: String
        let index: UInt32
        let bytes: UInt64
    }

    private var thresholds: [Threshold] = []
    private var watch: Task<Void, Never>?
    private var tell: @Sendable (LibvirtEvent) async -> Void = { _ in }

    /// Where events go.
    func connect(_ tell: @escaping @Sendable (LibvirtEvent) async -> Void) { self.tell = tell }

    /// Sets the threshold of one disk's scratch, in place of the one it had; 0 takes that away.
    ///
    /// - Throws: 8 when no running backup has scratch of that name. A disk's own fill is not
    ///   watched: 84.
    func set(
        _ device: String, of domain: LibvirtDomain, bytes: UInt64, _ manager: JobManager
    ) async throws {
        guard let (target, index) = Self.parts(device) else {
            throw ControlError.operationUnsupported(
                "only the scratch of a running backup has thresholds: name it as 'vda[INDEX]'")
        }
        let scratch = await manager.scratchFigures(of: domain.name)
        guard scratch.contains(where: { $0.target == target && $0.index == index }) else {
            throw ControlError.invalidArgument(
                what: "device '\(device)'", detail: "no running backup has scratch of that index")
        }
        let uuid = domain.definition.uuid
        thresholds.removeAll { $0.uuid == uuid && $0.index == index }
        guard bytes > 0 else { return }
        guard thresholds.count < Self.countMax else {
            throw ControlError.limit("thresholds", Self.countMax)
        }
        thresholds.append(
            Threshold(
                uuid: uuid, name: domain.name, device: device, index: index, bytes: bytes))
        if watch == nil { watch = Task { await look(manager) } }
    }

    /// Nothing is looked for any more.
    func stop() {
        watch?.cancel()
        thresholds = []
    }

    private func look(_ manager: JobManager) async {
        while !thresholds.isEmpty, !Task.isCancelled {
            for name in Set(thresholds.map(\.name)) { await look(at: name, manager) }
            try? await Task.sleep(for: Self.period)
        }
        watch = nil
    }

    private func look(at name: String, _ manager: JobManager) async {
        let facts = await manager.facts(ofDomainNamed: name)
        let scratch = await manager.scratchFigures(of: name)
        var events: [LibvirtEvent] = []
        thresholds.removeAll { threshold in
            guard threshold.name == name else { return false }
            guard facts?.definition.uuid == threshold.uuid,
                let part = scratch.first(where: { $0.index == threshold.index })
            else { return true }
            guard part.usedBytes >= threshold.bytes else { return false }
            events.append(
                .blockThreshold(
                    WireDomain(name: name, uuid: UUIDText.bytes(threshold.uuid), id: -1),
                    device: threshold.device, path: part.path, threshold: threshold.bytes,
                    excess: part.usedBytes - threshold.bytes))
            return true
        }
        for event in events { await tell(event) }
    }

    /// Target and index of `vda[7]`.
    static func parts(_ device: String) -> (target: String, index: UInt32)? {
        guard device.last == "]", let open = device.lastIndex(of: "[") else { return nil }
        let digits = device[device.index(after: open)...].dropLast()
        guard !digits.isEmpty, digits.utf8.allSatisfy({ (48...57).contains($0) }),
            let index = UInt32(digits)
        else { return nil }
        return (String(device[..<open]), index)
    }
}
