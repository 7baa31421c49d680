package import Foundation

/// One thing that happened, as `nbdpull event` and `/v1/events` show it.
package struct ControlEvent: Sendable, Hashable, Codable {
    /// What happened.
    package enum Kind: String, Sendable, Hashable, Codable, CaseIterable {
        case jobBegin = "job-begin"
        case jobResumed = "job-resumed"
        /// It is served, and ends with this server.
        case jobNotLasting = "job-not-lasting"
        case jobBroken = "job-broken"
        case jobEnd = "job-end"
        case jobExpired = "job-expired"
        case jobIdle = "job-idle"
        case watermark
        case clientConnect = "client-connect"
        case clientDisconnect = "client-disconnect"
        case clientRefused = "client-refused"
        case guestProblem = "guest-problem"
        case domainDefined = "domain-defined"
        case domainUndefined = "domain-undefined"
        case domainChanged = "domain-changed"
        case diskAttached = "disk-attached"
        case diskDetached = "disk-detached"
        case diskResized = "disk-resized"
        /// Its state was written for another server, which has it now.
        case diskExported = "disk-exported"
        /// It was taken over from another server.
        case diskImported = "disk-imported"
        case diskFailed = "disk-failed"
        case diskProblem = "disk-problem"
        case trackingRecovered = "tracking-recovered"
        case trackingProblem = "tracking-problem"
        case checkpointCreated = "checkpoint-created"
        case checkpointDeleted = "checkpoint-deleted"
        case stateProblem = "state-problem"
        case serverCrashed = "server-crashed"
        case setAside = "set-aside"
        case guestFrozen = "guest-frozen"
        case guestThawed = "guest-thawed"
        case guestThawFailed = "guest-thaw-failed"
        case eventProgramFailed = "event-exec-failed"

        /// Whoever reaches a socket can cause it, as often as they like.
        var isOfPeers: Bool {
            switch self {
            case .clientConnect, .clientDisconnect, .clientRefused, .guestProblem: true
            default: false
            }
        }
    }

    /// How much somebody who reads the log has to care.
    package enum Severity: Sendable, Hashable {
        /// Only when looking for something.
        case debug
        case info
        /// Nothing is lost yet, or only convenience.
        case warning
        /// A backup, a disk or a checkpoint is lost.
        case error
    }

    /// Counts up by one per event; a gap means that a slow reader missed some.
    package var sequence: UInt64
    package var time: Date
    package var event: Kind
    package var domain: String?
    /// The job's UUID.
    package var id: String?
    /// The disk's target.
    package var disk: String?
    /// Export name.
    package var name: String?
    package var usedBytes: UInt64?
    package var limitBytes: UInt64?
    package var message: String?
    /// Of a job's end: `completed`, `aborted`, `failed`, `cancelled`.
    package var outcome: String?

    package init(
        _ event: Kind, domain: String? = nil, id: String? = nil, disk: String? = nil,
        name: String? = nil, usedBytes: UInt64? = nil, limitBytes: UInt64? = nil,
        message: String? = nil
    ) {
        self.sequence = 0
        self.time = Date(timeIntervalSince1970: 0)
        self.event = event
        self.domain = domain
        self.id = id
        self.disk = disk
        self.name = name
        self.usedBytes = usedBytes
        self.limitBytes = limitBytes
        self.message = message
    }

    /// The severity; a job's end is as severe as its outcome.
    package var severity: Severity {
        switch event {
        case .jobBroken, .diskFailed, .diskProblem, .trackingProblem, .stateProblem,
            .guestThawFailed, .serverCrashed, .setAside:
            .error
        case .jobNotLasting, .watermark, .trackingRecovered, .clientRefused, .guestProblem,
            .jobExpired, .jobIdle,
            .eventProgramFailed:
            .warning
        case .jobEnd: message?.hasPrefix("Completed") == true ? .info : .warning
        case .clientConnect, .clientDisconnect: .debug
        case .jobBegin, .jobResumed, .domainDefined, .domainUndefined, .domainChanged,
            .diskAttached, .diskDetached, .diskResized, .diskExported, .diskImported,
            .checkpointCreated, .checkpointDeleted,
            .guestFrozen, .guestThawed:
            .info
        }
    }

    /// One line: kind, then `key=value` for what is known; the message comes last.
    package var text: String {
        var parts = [event.rawValue]
        if let domain { parts.append("domain=\(domain)") }
        if let id { parts.append("job=\(id)") }
        if let disk { parts.append("disk=\(disk)") }
        if let name { parts.append("export=\(name)") }
        if let usedBytes { parts.append("used=\(usedBytes)") }
        if let limitBytes { parts.append("limit=\(limitBytes)") }
        if let message { parts.append(": \(message)") }
        // Names come from users: an event stays one line whatever they hold.
        return parts.joined(separator: " ").map { $0.isNewline ? " " : String($0) }.joined()
    }

    /// One line: time, kind, then `key=value` for what is known; the message comes last.
    package var line: String {
        ISO8601.text(time) + " " + text
    }
}

/// The one spelling of times on every surface: ISO 8601 in UTC with milliseconds.
package enum ISO8601 {
    /// The time as `2026-11-21T03:18:28.123Z`.
    ///
    /// A time outside the years 1 to 9999 is written as the nearest within, whatever a file says.
    package static func text(_ date: Date) -> String {
        let seconds = date.timeIntervalSince1970
        guard seconds.isFinite else { return text(Date(timeIntervalSince1970: 0)) }
        return Date(timeIntervalSince1970: min(max(seconds, firstSecond), lastSecond))
            .formatted(style)
    }

    /// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z.
    private static let firstSecond = -62_135_596_800.0
    private static let lastSecond = 253_402_300_799.0

    /// The time a text made by `text(_:)` names, or nil.
    package static func date(_ text: String) -> Date? { try? style.parse(text) }

    private static var style: Date.ISO8601FormatStyle {
        Date.ISO8601FormatStyle(includingFractionalSeconds: true)
    }
}
