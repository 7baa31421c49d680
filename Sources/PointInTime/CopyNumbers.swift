/// Names a job among those of one disk; its slot is used again when it is detached.
package struct JobIndex: Hashable, Sendable, BitwiseCopyable {
    package let number: Int

    package init(_ number: Int) { self.number = number }

    /// Every slot for a job that a disk has.
    package static var all: LazyMapSequence<Range<Int>, JobIndex> {
        (0..<CopyBeforeWrite.jobsMax).lazy.map(JobIndex.init)
    }

    /// The job in a mask of jobs.
    var mask: UInt16 { 1 << UInt16(number) }
}

/// Names a copy in flight of one disk; its slot is used again when it is over.
package struct CopyIndex: Hashable, Sendable, BitwiseCopyable {
    package let number: Int

    package init(_ number: Int) { self.number = number }

    /// Every slot for a copy that a disk has.
    package static var all: LazyMapSequence<Range<Int>, CopyIndex> {
        (0..<CopyBeforeWrite.copiesMax).lazy.map(CopyIndex.init)
    }
}

extension [CopyBeforeWrite.Job] {
    subscript(_ job: JobIndex) -> Element {
        _read { yield self[job.number] }
        _modify { yield &self[job.number] }
    }
}

extension [CopyBeforeWrite.Copy] {
    subscript(_ copy: CopyIndex) -> Element {
        _read { yield self[copy.number] }
        _modify { yield &self[copy.number] }
    }
}
