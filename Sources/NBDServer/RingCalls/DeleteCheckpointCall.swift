import NBDProtocol
import ServerInterface
import SystemLayer
import Tracking
import TrackingFiles

/// Takes a checkpoint out of a disk's chain; what it recorded goes to the one before, or to what is
/// recorded now.
///
/// Returns whether the disk had it. What it does with files it does at once, in `step`.
struct DeleteCheckpointCall: RingCall {
    private enum State {
        case reading
        /// Files have been read, which takes as long as it takes: the ring's time counts from the
        /// next step.
        case read(bits: DirtyBitmap, home: Int, TrackingStore)
        case adding(RingQuestion, TrackingStore)
    }

    private let name: String
    private let disk: DiskID
    private let server: NBDServer
    private let own = Replies()
    private var state = State.reading
    private var exportName = ""

    var replies: Replies {
        switch state {
        case .reading, .read: own
        case .adding(let question, _): question.replies
        }
    }

    var deadline: UInt64 {
        switch state {
        case .reading, .read: 0
        case .adding(let question, _): question.deadline
        }
    }

    init(_ name: String, _ disk: DiskID, _ server: NBDServer) {
        self.name = name
        self.disk = disk
        self.server = server
    }

    mutating func step(now: UInt64) -> Result<Bool, ServerFault>? {
        switch state {
        case .reading: return read()
        case .read(let bits, let home, let store):
            let disk = disk
            let question = RingQuestion(server.shared.mailboxes[home], now: now) {
                .addBits(disk, bits, $0)
            }
            state = .adding(question, store)
            return nil
        case .adding(var question, let store):
            let outcome = question.step(now: now)
            state = .adding(question, store)
            switch outcome {
            case nil: return nil
            case .done: return delete(from: store)
            case .refused, .late:
                return .failure(.ringStuck(milliseconds: UInt64(Limits.ringMilliseconds)))
            }
        }
    }

    private mutating func read() -> Result<Bool, ServerFault>? {
        let found = server.store(disk)
        guard case .success(let (export, store)) = found else { return found.map { _ in false } }
        exportName = export.description.name
        guard store.record.chain.checkpoints.contains(name) else { return .success(false) }
        do throws(TrackingFault) {
            guard let bits = try store.bitsToAdd(deleting: name) else {
                return delete(from: store)
            }
            state = .read(bits: bits, home: export.homeRing, store)
            return nil
        } catch {
            return failure(error)
        }
    }

    private func delete(from store: TrackingStore) -> Result<Bool, ServerFault> {
        var store = store
        do throws(TrackingFault) {
            try store.delete(checkpoint: name)
        } catch {
            return failure(error)
        }
        return server.keep(store, disk) ? .success(true) : failure(.lost)
    }

    private func failure(_ fault: TrackingFault) -> Result<Bool, ServerFault> {
        .failure(.notTracked(export: exportName, detail: NBDServer.text(fault)))
    }
}
