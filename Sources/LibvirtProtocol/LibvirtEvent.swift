/// The kinds of events (`virDomainEventID`) that happen here, by number.
package enum LibvirtEventKind {
    package static let lifecycle: Int32 = 0
    package static let blockJob: Int32 = 8
    package static let blockJob2: Int32 = 16
    package static let jobCompleted: Int32 = 21
    package static let blockThreshold: Int32 = 24
    /// Of the kinds that there are, or may come to be, each may be asked for: most never happen
    /// here.
    package static let all: ClosedRange<Int32> = 0...127
    /// Clients that know no callbacks ask for these.
    package static let legacy: ClosedRange<Int32> = 0...15
}

/// An event that clients may have registered for.
package enum LibvirtEvent: Sendable, Hashable {
    /// What happened to a domain (`virDomainEventType`), and how.
    package enum Lifecycle: Sendable, Hashable {
        case defined, changed, undefined, started, stopped

        var numbers: (event: Int32, detail: Int32) {
            switch self {
            case .defined: (0, 0)
            case .changed: (0, 1)
            case .undefined: (1, 0)
            case .started: (2, 0)
            case .stopped: (5, 0)
            }
        }
    }

    /// What happened to a block job (`virConnectDomainEventBlockJobStatus`).
    package enum BlockJobStatus: Int32, Sendable, Hashable {
        case completed = 0
        case failed = 1
        case canceled = 2
    }

    /// The type of a block job that is a backup.
    package static let backupType: Int32 = 5

    case lifecycle(WireDomain, Lifecycle)
    /// A disk's part of a backup job has ended; `path` is its source.
    case blockJob(WireDomain, target: String, path: String, BlockJobStatus)
    case jobCompleted(WireDomain, [TypedParameter])
    case blockThreshold(
        WireDomain, device: String, path: String?, threshold: UInt64, excess: UInt64)

    /// The domain that it is about.
    package var domain: WireDomain {
        switch self {
        case .lifecycle(let domain, _), .blockJob(let domain, _, _, _),
            .jobCompleted(let domain, _), .blockThreshold(let domain, _, _, _, _):
            domain
        }
    }

    /// The same event of a domain as somebody else names it.
    package func about(_ domain: WireDomain) -> LibvirtEvent {
        switch self {
        case .lifecycle(_, let lifecycle): .lifecycle(domain, lifecycle)
        case .blockJob(_, let target, let path, let status):
            .blockJob(domain, target: target, path: path, status)
        case .jobCompleted(_, let parameters): .jobCompleted(domain, parameters)
        case .blockThreshold(_, let device, let path, let threshold, let excess):
            .blockThreshold(
                domain, device: device, path: path, threshold: threshold, excess: excess)
        }
    }

    /// The message for a registration of the kind; nil when this is no event of that kind.
    ///
    /// `callback` is the registration's number; nil for a client that knows none.
    package func message(kind: Int32, callback: Int32?) -> Packet? {
        guard let procedure = procedure(kind: kind, isLegacy: callback == nil) else { return nil }
        var writer = XDRWriter()
        if let callback { writer.int(callback) }
        writer.domain(domain)
        switch self {
        case .lifecycle(_, let lifecycle):
            writer.int(lifecycle.numbers.event)
            writer.int(lifecycle.numbers.detail)
        case .blockJob(_, let target, let path, let status):
            writer.string(kind == LibvirtEventKind.blockJob ? path : target)
            writer.int(Self.backupType)
            writer.int(status.rawValue)
        case .jobCompleted(_, let parameters):
            writer.parameters(parameters)
        case .blockThreshold(_, let device, let path, let threshold, let excess):
            writer.string(device)
            writer.optionalString(path)
            writer.uhyper(threshold)
            writer.uhyper(excess)
        }
        return Packet(
            PacketHeader(procedure: procedure.rawValue, type: .message), body: writer.bytes)
    }

    private func procedure(kind: Int32, isLegacy: Bool) -> Procedure? {
        switch (self, kind) {
        case (.lifecycle, LibvirtEventKind.lifecycle):
            isLegacy ? .lifecycleLegacyEvent : .lifecycleEvent
        case (.blockJob, LibvirtEventKind.blockJob):
            isLegacy ? .blockJobLegacyEvent : .blockJobEvent
        case (.blockJob, LibvirtEventKind.blockJob2): isLegacy ? nil : .blockJob2Event
        case (.jobCompleted, LibvirtEventKind.jobCompleted): isLegacy ? nil : .jobCompletedEvent
        case (.blockThreshold, LibvirtEventKind.blockThreshold):
            isLegacy ? nil : .blockThresholdEvent
        default: nil
        }
    }
}
