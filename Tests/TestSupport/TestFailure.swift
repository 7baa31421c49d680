/// A broken precondition or expectation outside a `#expect`, said in one line.
package struct TestFailure: Error, CustomStringConvertible {
    package let description: String

    package init(_ description: String) { self.description = description }
}
