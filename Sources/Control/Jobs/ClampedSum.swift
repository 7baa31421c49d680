extension Sequence where Element == UInt64 {
    /// The sum, or the largest number where the sum is larger: sizes of sparse files are.
    var clampedSum: UInt64 {
        reduce(0) { sum, next in
            let (total, isTooLarge) = sum.addingReportingOverflow(next)
            return isTooLarge ? .max : total
        }
    }
}
