import Testing

/// Everything below runs one test after the other: each keeps the whole machine busy.
@Suite(.serialized)
struct PointInTimeSuite {}
