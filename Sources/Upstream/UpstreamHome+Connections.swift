import SystemLayer

/// How an upstream's connections come and go.
extension UpstreamHome {
    /// One connection has broken: perhaps the upstream is another process by now, and none of them
    /// is believed.
    func breakAll(now: UInt64, _ errands: inout UpstreamErrands) {
        guard isMadeAgain else { return goForGood(now: now, .connectionBroke, &errands) }
        let isIdle = !commands.awaitsAnswers
        let lasted = now - min(now, connectedAt) >= Self.pauseMax
        lastFault = "the connection broke"
        noteShared(lasted)
        closeLinks(now: now, &errands)
        commands.connectionLost()
        // Before the next program is ordered, which leaves no trace of the one that is gone.
        noteAtStake()
        // One that lasted was there, whatever it was asked meanwhile.
        if hasProgress || isIdle || lasted { downSince = now }
        if hasProgress || lasted { pause = Self.pauseMin }
        hasProgress = false
        // One that breaks whatever is made is not asked faster than one that is not there.
        if !isParting, now >= nextAttempt { tryToConnect(now: now) }
    }

    /// Programs that do not get on with memory that is shared are asked over sockets alone.
    func noteShared(_ lasted: Bool) {
        guard let shared else { return }
        sharedBreaks = lasted ? 0 : sharedBreaks + 1
        if let fault = shared.fault {
            lastFault = fault
            source.shareNoMore(because: fault)
        } else if sharedBreaks >= Self.sharedBreaksMax {
            source.shareNoMore(because: "it has broken \(sharedBreaks) times in a row")
        }
    }

    /// Nothing is asked of it again, so nobody waits for what it may still carry out.
    func goForGood(
        now: UInt64, _ reason: ScratchEnd, _ errands: inout UpstreamErrands
    ) {
        closeLinks(now: now, waiting: false, &errands)
        commands.connectionLost()
        hasGivenUp = true
        source.noteEnd(reason)
    }

    /// Who does not answer may be asked by nobody who has a limit of his own: a client that waits
    /// would wait for good, and a machine that writes nothing would not find out.
    func checkAnswers(now: UInt64, _ errands: inout UpstreamErrands) {
        let patience = source.terms.patienceMilliseconds
        guard !links.isEmpty, let oldest = askedAt.values.min(),
            now - min(now, oldest) >= patience * 1_000_000
        else { return }
        goForGood(now: now, .isSilent(milliseconds: patience), &errands)
        pump(now: now, &errands)
    }

    /// What they answer from here on, to commands that are sent again, counts no more.
    func closeLinks(
        now: UInt64, waiting: Bool = true, _ errands: inout UpstreamErrands
    ) {
        let waitsForOthers = waiting && !commands.isLastBreak
        var closed: Set<UInt32> = []
        for link in links {
            if waitsForOthers, link.isAlive, link.isAsked {
                parting.append(link)
            } else {
                closed.insert(link.serial)
                link.close()
            }
        }
        if let shared {
            // One that the program broke off is through with what it was asked.
            if waitsForOthers, shared.isAsked {
                shared.part()
                partingShared = shared
            } else {
                close(shared, &errands)
            }
        }
        shared = nil
        errands.polls.removeAll { closed.contains($0.serial) }
        links.removeAll()
        answers.removeAll()
    }

    func close(_ queue: SharedQueue, _ errands: inout UpstreamErrands) {
        queue.close()
        errands.closed.append(queue)
        errands.polls.removeAll { $0.serial == queue.serial }
        if queue.waitsForCall { errands.cancels.append(queue.serial) }
    }

    private func close(_ link: UpstreamLink, _ errands: inout UpstreamErrands) {
        errands.polls.removeAll { $0.serial == link.serial }
        link.close()
    }

    var isParting: Bool { !parting.isEmpty || partingShared != nil }

    /// Lets go of the connections that have answered what they were asked.
    func settleParting(now: UInt64, _ errands: inout UpstreamErrands) {
        guard isParting else { return }
        answers.removeAll()
        // A write that is still under way would come back over a newer one of the same place, so all
        // that can answer are waited for: until patience ends.
        if let queue = partingShared, queue.hasEnded {
            close(queue, &errands)
            partingShared = nil
        }
        parting.removeAll { link in
            guard !link.isAlive || !link.isAsked else { return false }
            close(link, &errands)
            return true
        }
        if !isParting, now >= nextAttempt { tryToConnect(now: now) }
    }

    func closeParting(_ errands: inout UpstreamErrands) {
        for link in parting { close(link, &errands) }
        parting.removeAll()
        if let partingShared { close(partingShared, &errands) }
        partingShared = nil
        answers.removeAll()
    }

    /// It answers: what was said of its absence is over.
    func noteProgress() {
        hasProgress = true
        if isReported { source.report("it is there again: its requests go on") }
        isReported = false
        isEndReported = false
    }

    func tryToConnect(now: UInt64) {
        guard !isConnecting else { return }
        nextAttempt = now + pause
        pause = min(pause * 2, Self.pauseMax)
        isConnecting = source.startConnecting()
    }

    func connected(
        _ result: Result<FreshLinks, UpstreamFault>, _ serial: inout UInt32, now: UInt64,
        _ errands: inout UpstreamErrands
    ) {
        isConnecting = false
        switch result {
        case .failure(let fault): lastFault = fault.detail
        case .success(let fresh):
            guard links.isEmpty, !isParting else { return }
            hasGivenUp = false
            use(fresh, &serial, now: now)
            pump(now: now, &errands)
        }
    }

    func use(_ fresh: FreshLinks, _ serial: inout UInt32, now: UInt64) {
        connectedAt = now
        links = fresh.links
        for link in links {
            serial &+= 1
            link.serial = serial
        }
        shared = fresh.shared
        serial &+= 1
        shared?.serial = serial
        commands.connected()
    }

    /// The ring's clock has ticked.
    func tick(now: UInt64, _ errands: inout UpstreamErrands) {
        tickShared(now: now, &errands)
        guard isMadeAgain else { return checkAnswers(now: now, &errands) }
        guard links.isEmpty else {
            // One that nobody asks for anything is there again when its connections last.
            if isReported, now - min(now, connectedAt) >= Self.pauseMax { noteProgress() }
            return
        }
        settleParting(now: now, &errands)
        let away = now - min(now, downSince)
        let patience = source.terms.patienceMilliseconds * 1_000_000
        if !isReported, away >= Self.quietNanoseconds {
            isReported = true
            source.report(
                "it does not answer (\(lastFault)): requests wait for up to"
                    + " \(source.terms.patienceMilliseconds / 1_000) s")
        }
        if !hasGivenUp, away >= patience {
            hasGivenUp = true
            if !isEndReported {
                source.report(
                    "it has not answered for \(source.terms.patienceMilliseconds / 1_000) s"
                        + " (\(lastFault)): requests fail until it does")
            }
            isEndReported = true
            pump(now: now, &errands)
        }
        if !isParting, now >= nextAttempt { tryToConnect(now: now) }
    }

    /// What nobody tells of is looked after.
    private func tickShared(now: UInt64, _ errands: inout UpstreamErrands) {
        guard let shared else { return }
        shared.rest()
        // A call or a kick that got lost would be waited for without end.
        if shared.isAsked { errands.kicks.append(shared) }
        if !shared.checkMemory() || shared.hasAnswers { pump(now: now, &errands) }
    }

    func giveUp(_ errands: inout UpstreamErrands) {
        // Bytes of what has failed are no longer theirs.
        closeParting(&errands)
        if isMadeAgain {
            commands.giveUp(readErrno: Self.timedOut, changeErrno: Errno.canceled)
        } else {
            let errno = source.scratchEnd == nil ? Errno.canceled : Errno.io
            commands.giveUp(readErrno: errno, changeErrno: errno)
        }
    }

    private static let timedOut: Int32 = 110
}
