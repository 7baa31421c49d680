import BoundedCalls
import LibvirtProtocol
import ServerInterface

/// Freezes and thaws guests through the libvirtd that runs their machines.
///
/// A freeze is noted on disk before it is asked for, has a connection of its own, and is thawed in
/// a task of its own: no caller that fails or leaves, no libvirtd that hangs or restarts, no state
/// directory that hangs and no crash of this process keeps a guest frozen.
package actor GuestFreezer: GuestFreezing {
    /// How long things take.
    package struct Limits: Sendable, Hashable {
        /// Until the agent has frozen all file systems: those of a busy guest are synced first.
        package var freeze: Duration = .seconds(60)
        /// That a guest may stand still: then it is thawed, and what was to be done has failed.
        package var frozen: Duration = .seconds(30)
        /// That who thaws waits for it; it goes on without.
        package var thaw: Duration = .seconds(10)
        /// Until one attempt to thaw counts as failed.
        package var attemptSeconds: Int64 = 40
        /// Between two attempts at first, and at most.
        package var firstPause: Duration = .seconds(1)
        package var longestPause: Duration = .seconds(30)
        /// Between two reports that a guest cannot be thawed; it is tried until it is.
        package var reportAgain: Duration = .seconds(3600)

        package init() {}
    }

    /// One guest that is frozen, or may be.
    private struct Freeze {
        let domain: String
        /// Who thaws it: nobody else's freeze is ended by that.
        let owner: String
        /// For the thaw; renewed when it is gone.
        var connection: UpstreamConnection?
        /// What the agent has said; it may still freeze as long as there is none.
        var reply = LateValue<Result<Packet, UpstreamFault>>()
        /// The agent has been asked, or may have been: it must be thawed.
        var isAsked = false
        var isThawing = false
        /// Writes its note to disk; true when there was one already.
        var note: Task<Bool, Never>?
        /// There was a note before: the guest may have been left frozen by an earlier freeze of
        /// ours.
        var wasNotedBefore = false
        var watchdog: Task<Void, Never>?
        let thawed = LateValue<Bool>()
    }

    let upstream: UpstreamSettings
    private let state: (any FreezeNotes)?
    let limits: Limits
    private let events: EventLog
    /// Runs what the state directory is asked: it may hang, and must not keep a guest frozen.
    private let storage = StorageCalls()
    private var freezes: [String: Freeze] = [:]
    /// Guests whose agents get their response timeout back, and whose notes are being removed; the
    /// next freeze waits for that, or it would lose its own.
    private var settling: [String: LateValue<Bool>] = [:]
    private var isStopping = false

    package init(
        upstream: UpstreamSettings, state: (any FreezeNotes)?, events: EventLog,
        limits: Limits = Limits()
    ) {
        self.upstream = upstream
        self.state = state
        self.events = events
        self.limits = limits
    }

    /// Thaws the guests that an earlier run may have left frozen; returns a line for each.
    package func recover() -> [String] {
        guard let kept = state?.freezes() else { return [] }
        for record in kept.records where freezes[record.uuid] == nil {
            var freeze = Freeze(domain: record.domain, owner: "")
            freeze.reply.set(.failure(.closed(path: upstream.socketPath)))
            freeze.isAsked = true
            freeze.isThawing = true
            freezes[record.uuid] = freeze
            Task { await self.thawUntilDone(record.uuid) }
        }
        return kept.damaged.map(\.text)
            + kept.records.map {
                "the guest of domain '\($0.domain)' may have been left frozen: it is being thawed"
            }
    }

    /// Guests that an earlier run may have left frozen, where there is no libvirtd to thaw them
    /// through; a line for each.
    package static func leftovers(_ state: StateDirectory) -> [String] {
        let kept = state.freezes()
        return kept.damaged.map(\.text)
            + kept.records.map {
                "the guest of domain '\($0.domain)' may have been left frozen: thaw it with virsh "
                    + "domfsthaw, or give --libvirt-upstream again"
            }
    }

    /// Whether no guest is frozen, or being thawed.
    package var isIdle: Bool { freezes.isEmpty && settling.isEmpty }

    /// Thaws all and waits for it, as long as a caller of `thaw` would; from now on nothing is
    /// frozen.
    package func shutdown() async {
        isStopping = true
        for uuid in freezes.keys { startThaw(uuid) }
        await wait(for: freezes.values.map(\.thawed), limits.thaw)
        await wait(for: Array(settling.values), .seconds(UpstreamLimits.shortAnswerSeconds))
    }

    /// Waits for all of them, as long as for one.
    private func wait(for values: [LateValue<Bool>], _ time: Duration) async {
        let end = ContinuousClock.now + time
        for value in values {
            _ = await value.value(within: max(end - ContinuousClock.now, .zero))
        }
    }

    package func freeze(
        domain name: String, uuid: String, owner: String
    ) async throws(ControlError) {
        guard !isStopping else { throw .serverStopping }
        guard freezes[uuid] == nil else { throw .stillFrozen(name) }
        let freeze = Freeze(domain: name, owner: owner)
        freezes[uuid] = freeze
        do throws(ControlError) {
            try await ask(uuid, freeze)
        } catch {
            forget(uuid, isThawed: false)
            throw error
        }
        let reply = await freeze.reply.value(within: limits.freeze)
        do throws(ControlError) {
            try check(reply, uuid, name)
        } catch {
            startThaw(uuid)
            throw error
        }
        events.append(ControlEvent(.guestFrozen, domain: name))
        let time = limits.frozen
        freezes[uuid]?.watchdog = Task {
            try? await Task.sleep(for: time)
            if !Task.isCancelled { self.startThaw(uuid) }
        }
    }

    // Asks the agent; when this throws, it has not been asked.
    private func ask(_ uuid: String, _ freeze: Freeze) async throws(ControlError) {
        if let before = settling[uuid], await before.value(within: limits.freeze) == nil {
            throw stateHangs()
        }
        try await note(uuid, freeze.domain)
        let connection = try await connect()
        freezes[uuid]?.connection = connection
        await boundAgent(uuid, freeze.domain, connection, seconds: agentSeconds)
        // A server that stops waits for guests that are frozen, not for those that might be.
        guard !isStopping else { throw .serverStopping }
        freezes[uuid]?.isAsked = true
        Task {
            freeze.reply.set(
                await self.ask(.domainFSFreeze, uuid, freeze.domain, connection, nil))
        }
    }

    package func thaw(owner: String) async -> Bool {
        guard let (uuid, freeze) = freezes.first(where: { $0.value.owner == owner }),
            !freeze.isThawing
        else { return false }
        startThaw(uuid)
        _ = await freeze.thawed.value(within: limits.thaw)
        return true
    }

    // Returns when the guest is frozen; forgets it first when it surely is not.
    private func check(
        _ reply: Result<Packet, UpstreamFault>?, _ uuid: String, _ name: String
    ) throws(ControlError) {
        switch reply {
        case nil:
            throw ControlError(
                .operationTimeout, code: "freeze-timed-out", status: 504,
                detail: "the guest agent of domain '\(name)' has not frozen its file systems "
                    + "within \(limits.freeze.components.seconds) seconds")
        case .failure(let fault): throw ControlError(fault)
        case .success(let packet):
            guard packet.header.status != PacketStatus.ok.rawValue else { return }
            let error = try? WireError(body: packet.body)
            let mayBeOurs = freezes[uuid]?.wasNotedBefore ?? false
            if let error, Self.wasNotFrozen(error, mayBeOurs: mayBeOurs) {
                forget(uuid, isThawed: false)
            }
            throw ControlError(error.map(UpstreamFault.refused) ?? garbled(packet))
        }
    }

    private func forget(_ uuid: String, isThawed: Bool) {
        guard let freeze = freezes.removeValue(forKey: uuid) else { return }
        freeze.watchdog?.cancel()
        freeze.thawed.set(true)
        settle(uuid, freeze, isThawed: isThawed)
    }

    /// Gives the agent its response timeout back and the connection up, and removes the note.
    private func settle(_ uuid: String, _ freeze: Freeze, isThawed: Bool) {
        guard isThawed || freeze.connection != nil || freeze.note != nil else { return }
        let isDone = LateValue<Bool>()
        settling[uuid] = isDone
        Task {
            async let removed: Void = removeNote(uuid, freeze, isThawed: isThawed)
            if let connection = freeze.connection {
                await boundAgent(uuid, freeze.domain, connection, seconds: Self.blocks)
                connection.close()
            }
            await removed
            isDone.set(true)
            settling[uuid] = nil
        }
    }
}

// MARK: Notes on disk

extension GuestFreezer {
    /// Notes that a guest is about to be frozen; throws when that cannot be done in time.
    private func note(_ uuid: String, _ domain: String) async throws(ControlError) {
        guard let state else { return }
        let record = StoredFreeze(uuid: uuid, domain: domain)
        let saved = LateValue<SavedNote>()
        let storage = storage
        freezes[uuid]?.note = Task {
            let result = await storage.run(
                at: .tracking, what: StoragePlace.tracking.text, .end(milliseconds: nil)
            ) { () -> Result<SavedNote, ServerFault> in .success(SavedNote(record, in: state)) }
            let note =
                switch result {
                case .success(let note): note
                case .failure(let fault): SavedNote(problem: controlError(from: fault))
                }
            saved.set(note)
            return note.wasThere
        }
        guard let note = await saved.value(within: limits.freeze) else { throw stateHangs() }
        freezes[uuid]?.wasNotedBefore = note.wasThere
        if let problem = note.problem { throw problem }
    }

    /// What became of a note.
    private struct SavedNote: Sendable {
        var wasThere = false
        var problem: ControlError?

        init(problem: ControlError) { self.problem = problem }

        init(_ record: StoredFreeze, in state: any FreezeNotes) {
            wasThere = state.hasFreeze(of: record.uuid)
            do throws(ControlError) {
                try state.save(record)
            } catch {
                problem = error
            }
        }
    }

    /// Removes a note once it is written, be it late.
    ///
    /// One that was there before says of an earlier freeze what only a thaw makes untrue.
    private func removeNote(_ uuid: String, _ freeze: Freeze, isThawed: Bool) async {
        guard let state, isThawed || freeze.note != nil else { return }
        let wasThere = await freeze.note?.value ?? false
        guard isThawed || !wasThere else { return }
        let removal = await storage.run(
            at: .tracking, what: StoragePlace.tracking.text, .end(milliseconds: nil)
        ) { () -> Result<ControlError?, ServerFault> in
            do throws(ControlError) {
                try state.removeFreeze(of: uuid)
                return .success(nil)
            } catch {
                return .success(error)
            }
        }
        let problem: ControlError? =
            switch removal {
            case .success(let problem): problem
            case .failure(let fault): controlError(from: fault)
            }
        // The next start thaws a guest that is not frozen, which harms nobody.
        guard let problem else { return }
        events.append(
            ControlEvent(.stateProblem, domain: freeze.domain, message: problem.message))
    }

    private func stateHangs() -> ControlError {
        let (seconds, attoseconds) = limits.freeze.components
        return controlError(
            from: .timedOut(
                what: StoragePlace.tracking.text,
                milliseconds: UInt64(clamping: seconds) * 1000
                    + UInt64(clamping: attoseconds / 1_000_000_000_000_000)))
    }
}

// MARK: Thawing

extension GuestFreezer {
    private func startThaw(_ uuid: String) {
        guard let freeze = freezes[uuid], freeze.isAsked, !freeze.isThawing else { return }
        freezes[uuid]?.isThawing = true
        freeze.watchdog?.cancel()
        Task { await self.thawUntilDone(uuid) }
    }

    private func thawUntilDone(_ uuid: String) async {
        var pause = limits.firstPause
        var reportsAt = ContinuousClock.now
        var isReported = false
        while let freeze = freezes[uuid] {
            guard let failure = await thawOnce(uuid, freeze) else {
                events.append(ControlEvent(.guestThawed, domain: freeze.domain))
                return forget(uuid, isThawed: true)
            }
            if ContinuousClock.now >= reportsAt {
                report(freeze.domain, "\(failure): it is tried again")
                reportsAt = ContinuousClock.now + limits.reportAgain
                // Who has not answered a freeze for so long is no longer waited for.
                if isReported, freeze.reply.value == nil { freezes[uuid]?.connection?.close() }
                isReported = true
            }
            try? await Task.sleep(for: pause)
            pause = min(pause * 2, limits.longestPause)
        }
    }

    private func report(_ domain: String, _ message: String) {
        events.append(ControlEvent(.guestThawFailed, domain: domain, message: message))
    }

    /// Nil when the guest is thawed, or gone; else what is in the way.
    private func thawOnce(_ uuid: String, _ freeze: Freeze) async -> String? {
        let connection: UpstreamConnection
        do throws(ControlError) {
            connection = try await liveConnection(uuid)
        } catch {
            return error.message
        }
        // A freeze that had not come to an end when the thaw was asked for may have followed it, or
        // may still follow; its answer that comes meanwhile does not say which was first.
        let hadEnded = freeze.reply.value != nil
        let reply = await ask(
            .domainFSThaw, uuid, freeze.domain, connection, limits.attemptSeconds)
        switch reply {
        case .failure(let fault): return fault.wire.message
        case .success(let packet) where packet.header.status == PacketStatus.ok.rawValue:
            return hadEnded ? nil : "the agent has not answered the freeze yet"
        case .success(let packet):
            let error = try? WireError(body: packet.body)
            if error?.code == WireErrorCode.noDomain { return nil }
            if await isOff(uuid, freeze.domain, connection) { return nil }
            return error?.message ?? garbled(packet).wire.message
        }
    }

    /// The freeze's own connection, or a new one when that is gone; who freezes on a connection
    /// that is gone is not waited for.
    private func liveConnection(_ uuid: String) async throws(ControlError) -> UpstreamConnection {
        if let connection = freezes[uuid]?.connection, connection.isOpen { return connection }
        let connection = try await connect()
        guard let freeze = freezes[uuid] else {
            connection.close()
            throw .internalError("nobody is frozen any more")
        }
        freeze.connection?.close()
        freezes[uuid]?.connection = connection
        return connection
    }
}
