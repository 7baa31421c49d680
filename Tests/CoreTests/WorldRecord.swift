import Core

/// Changes are recorded; the power may be cut, or the process killed, in every state.
extension Stage {
    func mask(_ clusters: Range<Int>) -> UInt64 {
        clusters.reduce(0) { $0 | 1 << UInt64($1) }
    }

    /// Marks the blocks of a change that is about to be submitted.
    func mark(_ index: Int, in world: inout World) throws(Violation) {
        guard world.record?.nextMarkFails == true else {
            world.record?.bits |= mask(world.writes[index].clusters)
            return
        }
        world.record?.nextMarkFails = false
        world.changes.loseRecord()
        if scenario.driverRule != .submitsUnsaid, world.changes.takeLoss() {
            try performRecording(.declareLoss, in: &world)
        }
    }

    /// No change is missed, were the power cut or the process killed now.
    func checkRecord(_ world: World) throws(Violation) {
        guard let missed = world.record?.missed, missed != 0 else { return }
        throw Violation(text: "changes of clusters \(String(missed, radix: 2)) could be missed")
    }

    func performRecording(_ action: DiskAction, in world: inout World) throws(Violation) {
        switch action {
        case .writeLog:
            guard world.record?.writing == nil, let words = world.changes.logWords.first else {
                throw Violation(text: "two writes of the log at once")
            }
            world.record?.writing = words
            world.record?.possibleLogs.insert(words)
        case .syncBits:
            guard let record = world.record, record.syncing == nil else {
                throw Violation(text: "two syncs at once")
            }
            world.record?.syncing = record.bits
        case .declareLoss:
            guard world.record?.isLossAsked == false else {
                throw Violation(text: "the loss is declared twice")
            }
            world.record?.isLossAsked = true
            if scenario.driverRule == .declaresLate { world.changes.lossDeclared() }
        default: break
        }
    }

    func addRecording(_ world: World, to events: inout [Event]) {
        guard let record = world.record else { return }
        if record.writing != nil {
            events.append(.logIsWritten(true))
            if world.failuresLeft > 0, scenario.trouble.contains(.logFails) {
                events.append(.logIsWritten(false))
                if world.changes.isLogAwaited { events.append(.logIsOverdue) }
            }
        }
        if record.syncing != nil {
            events.append(.bitsAreSynced(true))
            if world.failuresLeft > 0, scenario.trouble.contains(.syncFails) {
                events.append(.bitsAreSynced(false))
            }
        }
        if record.isLossAsked, !record.isLossDeclared { events.append(.lossIsDeclared) }
        if world.failuresLeft > 0, scenario.trouble.contains(.markFails), !record.nextMarkFails {
            events.append(.nextMarkFails)
        }
        if world.clearingsLeft > 0 { events.append(.startClearing) }
    }

    func applyRecording(_ event: Event, to world: inout World) throws(Violation) {
        switch event {
        case .logIsWritten(let succeeded):
            if succeeded, let written = world.record?.writing {
                world.record?.possibleLogs = [written]
            } else {
                world.failuresLeft -= 1
            }
            world.record?.writing = nil
            world.changes.logWritten(succeeded: succeeded)
        case .bitsAreSynced(let succeeded):
            if !succeeded {
                world.failuresLeft -= 1
                world.record?.isSyncBelievable = false
            }
            if let record = world.record, let syncing = record.syncing, record.isSyncBelievable,
                scenario.driverRule != .skipsSync
            {
                world.record?.durableBits |= syncing
            }
            world.record?.syncing = nil
            world.changes.bitsSynced(succeeded: succeeded)
        case .startClearing:
            world.clearingsLeft -= 1
            world.changes.startClearing()
        case .logIsOverdue:
            world.failuresLeft -= 1
            world.changes.loseRecord()
        case .nextMarkFails:
            world.failuresLeft -= 1
            world.record?.nextMarkFails = true
        case .lossIsDeclared:
            world.record?.isLossDeclared = true
            world.changes.lossDeclared()
        default: break
        }
        try drain(&world)
        try checkRecord(world)
    }
}
