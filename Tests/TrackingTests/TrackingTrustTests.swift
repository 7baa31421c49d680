import Testing
import Tracking

/// What a start believes, rule by rule.
@Suite struct TrackingTrustTests {
    private func evidence(
        isClean: Bool = false, session: Finding<TrackingSession> = .nothing,
        mark: Finding<String> = .nothing, recordedMark: String = "", isInMemory: Bool = true,
        changed: UInt64 = 1, boot: String = "b"
    ) -> TrackingTrust {
        TrackingEvidence(
            record: TrackingRecord(
                source: SourceIdentity(
                    path: "/d", sizeBytes: 1, inode: 1, changedNanoseconds: 1),
                granularityBytes: 4096, bootID: "b", isClean: isClean, chain: LayerChain(),
                session: "s", mark: recordedMark),
            session: session, sessionIsInMemory: isInMemory, mark: mark,
            changedNanoseconds: changed, bootID: boot
        ).trust
    }

    private func session(
        _ id: String = "s", _ state: TrackingSession.State = .tracked, boot: String = "b"
    ) -> Finding<TrackingSession> {
        .found(TrackingSession(id: id, bootID: boot, state: state, directory: "/t"))
    }

    private func isNothing(_ trust: TrackingTrust) -> Bool {
        if case .nothing = trust { true } else { false }
    }

    @Test("an unclean record is exact only with its own session, of this boot, in memory")
    func unclean() {
        #expect(evidence(session: session()) == .memory)
        #expect(evidence() == .log)
        #expect(evidence(session: session(), isInMemory: false) == .log)
        #expect(evidence(session: session(boot: "a"), boot: "c") == .log)
        #expect(evidence(session: session(), boot: "") == .log)
        #expect(evidence(session: session("other", boot: "a")) == .log)
    }

    @Test("a clean record is exact when nothing speaks of anybody after it")
    func clean() {
        #expect(evidence(isClean: true) == .file)
        #expect(evidence(isClean: true, session: session()) == .file)
        #expect(evidence(isClean: true, changed: 2) == .nothing(nil))
        #expect(evidence(isClean: true, session: session("other", boot: "a")) == .file)
    }

    @Test("whatever speaks of a session after the record, or cannot be read, makes all dirty")
    func doubt() {
        for isClean in [false, true] {
            #expect(isNothing(evidence(isClean: isClean, session: session("other"))))
            #expect(isNothing(evidence(isClean: isClean, session: session("x", .untracked))))
            #expect(
                isNothing(evidence(isClean: isClean, session: session("x", .untracked, boot: "a"))))
            #expect(isNothing(evidence(isClean: isClean, session: session("s", .syncing))))
            #expect(isNothing(evidence(isClean: isClean, session: .unreadable)))
            #expect(isNothing(evidence(isClean: isClean, mark: .unreadable)))
            #expect(isNothing(evidence(isClean: isClean, mark: .found("untracked 1"))))
            #expect(isNothing(evidence(isClean: isClean, recordedMark: "untracked 1")))
            #expect(
                !isNothing(
                    evidence(isClean: isClean, mark: .found("m"), recordedMark: "m")))
        }
    }

    @Test("a session is read as it was written, and anything else is none")
    func sessions() {
        let whole = TrackingSession(
            id: "a1", bootID: "b", state: .untracked, directory: "/x\ny")
        let bytes = whole.encode()
        #expect(TrackingSession.decode(bytes) == whole)
        // A longer one may have been there before.
        #expect(TrackingSession.decode(bytes + [1, 2, 3]) == whole)
        for length in 0..<(bytes.count - 1) {
            #expect(TrackingSession.decode(Array(bytes.prefix(length))) == nil, "\(length)")
        }
        for index in bytes.indices.dropLast() {
            var altered = bytes
            altered[index] ^= 1
            #expect(TrackingSession.decode(altered) == nil, "byte \(index)")
        }
    }
}
