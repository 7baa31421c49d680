/// A lie that the simulated kernel tells, or a rule that the world around the rings breaks.
package enum ServerCanary: String, CaseIterable, Sendable {
    /// A durable write completes before it is durable.
    case answersBeforeSync
    /// A write to scratch is reported before it is made.
    case keepsBeforeWriting
    /// Everything is called a hole.
    case findsHoles
    /// Fault A1: nobody is told that scratch has lost something.
    case trustsScratch
}
