import Tracking

/// The write-intent log of a disk whose changes are recorded, by what changes touch.
struct RecordedRegions: Sendable, Hashable {
    var log: WriteIntent
    /// log2 of a region's bytes.
    let shift: UInt64

    mutating func admit(_ change: Change) -> IntentAdmission {
        log.admit(change.id, regions: regions(of: change))
    }

    mutating func finished(_ change: Change) { log.finished(regions: regions(of: change)) }

    mutating func nextAction() -> IntentAction? { log.nextAction() }

    private func regions(of change: Change) -> Range<Int> {
        WriteIntent.regions(
            touching: change.bytes.lowerBound, length: UInt64(change.bytes.count), shift: shift)
    }
}
