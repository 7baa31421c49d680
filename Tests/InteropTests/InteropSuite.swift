import Testing

/// Everything below runs one test after the other: each drives servers, disks and other programs.
@Suite(.serialized)
struct InteropSuite {}
