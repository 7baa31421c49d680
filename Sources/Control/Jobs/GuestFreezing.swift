/// Freezes the file systems of guests for an instant.
///
/// The one who freezes a guest thaws it: a guest that stays frozen is a machine at a standstill.
package protocol GuestFreezing: Sendable {
    /// Returns once all file systems of a domain's guest are frozen; call `thaw` then, whatever
    /// happens.
    ///
    /// They are thawed without that, too, when it takes too long. `owner` is a name that nobody
    /// else uses: who thaws says by it which freeze is meant.
    ///
    /// - Throws: what the machine's agent says, or 68 when it says nothing; then they are thawed
    ///   already, or are being thawed.
    func freeze(domain name: String, uuid: String, owner: String) async throws(ControlError)

    /// Thaws what `owner` has frozen.
    ///
    /// False when it had been thawed before, also when somebody else has frozen the guest since:
    /// nothing that happened meanwhile can be relied on to lie in one frozen time.
    func thaw(owner: String) async -> Bool
}

extension ControlError {
    /// The machine's agent is not to be reached from here.
    static let agentNotConfigured = ControlError(
        code: "agent-not-configured", libvirtCode: 74,
        message: "argument unsupported: QEMU guest agent is not configured", httpStatus: 422)

    /// The instant may lie outside the frozen time.
    static func thawedTooEarly(_ name: String) -> ControlError {
        ControlError(
            .operationTimeout, code: "thawed-too-early", status: 504,
            detail: "the file systems of domain '\(name)' had to be thawed before the instant was "
                + "taken")
    }
}

extension JobManager {
    /// Freezes a domain's guest, when that is asked for.
    func freeze(
        _ isAsked: Bool, _ definition: DomainDefinition, for owner: String
    ) async throws(ControlError) {
        guard isAsked else { return }
        guard let freezer = settings.freezer else { throw .agentNotConfigured }
        try await freezer.freeze(domain: definition.name, uuid: definition.uuid, owner: owner)
    }

    /// Thaws it again; false when it was thawed before.
    func thaw(_ isAsked: Bool, for owner: String) async -> Bool {
        guard isAsked, let freezer = settings.freezer else { return true }
        return await freezer.thaw(owner: owner)
    }
}
