import Foundation
import Glibc

/// What is printed about a run.
struct Report: Encodable {
    let queues: Int
    let depth: Int
    let blockBytes: Int
    let readPercent: Int
    let order: String
    let wait: String
    let seconds: Double
    let requests: Int
    let iops: Double
    let bytesPerSecond: Double
    let p50: Double
    let p99: Double
    let p999: Double
    let largest: Double
    let errors: Int
    let kicks: Int
    let sleeps: Int
    /// Processor time of this program, in seconds.
    let processorSeconds: Double

    /// Latencies are in microseconds.
    init(_ plan: LoadPlan, _ results: [WorkerResult], processorSeconds: Double) {
        var latencies = Histogram()
        for result in results { latencies.add(result.latencies) }
        let seconds = results.map(\.seconds).max() ?? 0
        let requests = results.reduce(0) { $0 + $1.reads + $1.writes }
        queues = plan.queues
        depth = plan.depth
        blockBytes = plan.blockBytes
        readPercent = plan.readShare
        order = plan.order.rawValue
        wait = plan.wait.rawValue
        self.seconds = seconds
        self.requests = requests
        iops = Double(requests) / seconds
        bytesPerSecond = Double(requests * plan.blockBytes) / seconds
        p50 = latencies.microseconds(0.5)
        p99 = latencies.microseconds(0.99)
        p999 = latencies.microseconds(0.999)
        largest = latencies.microseconds(1)
        errors = results.reduce(0) { $0 + $1.errors }
        kicks = results.reduce(0) { $0 + $1.kicks }
        sleeps = results.reduce(0) { $0 + $1.sleeps }
        self.processorSeconds = processorSeconds
    }

    /// Processor time of this program so far, in seconds.
    static func processorSeconds() -> Double {
        var usage = rusage()
        // SAFETY: a local variable.
        unsafe getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
        return Double(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
            + Double(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6
    }

    /// Prints a value as JSON on one line.
    static func print<Value: Encodable>(_ value: Value) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys]
        Swift.print(String(decoding: try encoder.encode(value), as: UTF8.self))
    }
}
