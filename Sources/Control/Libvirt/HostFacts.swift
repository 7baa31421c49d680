import Foundation

/// What there is to tell of this machine.
struct HostFacts: Sendable {
    /// As the kernel knows it: no name server is asked.
    let name: String
    let uuid: String?
    /// `x86_64`, `aarch64`.
    let architecture: String
    let processors: Int
    /// KiB.
    let memory: UInt64
    let megahertz: Int32

    init() {
        name = Self.line("/proc/sys/kernel/hostname") ?? "localhost"
        uuid =
            Self.line("/sys/class/dmi/id/product_uuid").flatMap(UUIDText.normalized)
            ?? Self.line("/etc/machine-id").flatMap(UUIDText.normalized)
        architecture = Self.line("/proc/sys/kernel/arch") ?? "x86_64"
        processors = ProcessInfo.processInfo.activeProcessorCount
        memory = ProcessInfo.processInfo.physicalMemory / 1024
        let clock = Self.lines("/proc/cpuinfo").first { $0.hasPrefix("cpu MHz") }
        megahertz =
            clock?.split(separator: ":").last
            .flatMap { Double($0.trimmingCharacters(in: .whitespaces)) }
            .map { Int32(min(max($0, 0), 100_000)) } ?? 0
    }

    private static func lines(_ path: String) -> [Substring] {
        guard let text = try? String(contentsOfFile: path, encoding: .utf8) else { return [] }
        return text.split(separator: "\n")
    }

    private static func line(_ path: String) -> String? { lines(path).first.map(String.init) }
}
