package import Foundation
import Glibc

extension Process {
    /// Ends the program at once; a child of a test's thread may have every other signal blocked.
    package func killAndWait() {
        kill(processIdentifier, SIGKILL)
        waitUntilExit()
    }
}
