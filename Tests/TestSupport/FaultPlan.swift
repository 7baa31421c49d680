import Foundation

/// Faults at chosen changes that a server makes below a directory, by a library that is loaded into
/// it (`Tests/faults/faults.c`).
package final class FaultPlan {
    /// What happens at the change.
    package enum Fault: Sendable {
        /// The process is gone before the change is made.
        case killed
        /// The process crashes when something is opened, from then on every time.
        case crashes
        /// So many calls fail, one after the other; with EMFILE what is opened, else what is
        /// changed.
        case fails(errno: Int32, count: Int = 1)
    }

    private let folder: TemporaryDirectory
    private let under: String
    private var writes = 0

    /// Builds the library; `under` is the directory whose changes count.
    package init(under: String) throws {
        self.under = under
        folder = try TemporaryDirectory()
        let source = FileManager.default.currentDirectoryPath + "/Tests/faults/faults.c"
        try Command.run(
            "clang", ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source]
        ).output()
    }

    private var library: String { folder.file("faults.so") }
    private var plan: String { folder.file("plan") }

    /// What the server has to be started with.
    package var environment: [String: String] {
        ["LD_PRELOAD": library, "FAULTS_UNDER": under, "FAULTS_PLAN": plan]
    }

    /// Counts changes from here on; the fault comes with the `step`th, the first being 1.
    package func arm(_ fault: Fault, at step: Int) throws {
        // A plan that differs in its blanks is a new one.
        writes += 1
        let blanks = String(repeating: " ", count: 1 + writes % 2)
        switch fault {
        case .killed: try Files.write("\(step)\(blanks)0", to: plan)
        case .crashes: try Files.write("\(step)\(blanks)-1 1000000", to: plan)
        case .fails(let errno, let count):
            try Files.write("\(step)\(blanks)\(errno) \(count)", to: plan)
        }
    }

    /// No more faults; returns how many changes there were since `arm`.
    @discardableResult
    package func disarm() -> Int {
        Files.remove(plan)
        defer { Files.remove(plan + ".count") }
        return Int(Files.read(plan + ".count").trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
    }
}
