import ArgumentParser
import Foundation
import Glibc
import VhostClient
import VhostFrontEnd

@main
struct Main: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "nbdpull-vhost-load",
        abstract: "Puts a load on a vhost-user-blk back-end, and measures it.",
        discussion: """
            Prints one line of JSON: requests a second, latencies in microseconds, and what it \
            cost. For tests and benchmarks: writes go wherever they like.
            """)

    @Argument(help: "The back-end's socket.")
    var socket: String

    @Option(help: "Queues, each with a thread.")
    var queues = 1

    @Option(help: "Requests in flight on each queue.")
    var depth = 1

    @Option(help: "Bytes of a request.")
    var block = 4096

    @Option(help: "Percent of the requests that read; the others write.")
    var read = 100

    @Option(help: "random, sequential, or touch: one block in each stride, once.")
    var order = LoadPlan.Order.random

    @Option(help: "Bytes of a stride.")
    var stride = 65_536

    @Option(help: "How answers are waited for: sleep or poll.")
    var wait = LoadPlan.Wait.sleep

    @Option(help: "How long it runs.")
    var seconds = 2.0

    @Option(help: "Bytes from the disk's start on that are used; 0 is all.")
    var span = 0

    @Option(help: "Where random numbers begin.")
    var seed: UInt64 = 1

    @Flag(help: "Requests have tables of descriptors.")
    var indirect = false

    @Flag(help: "Notifications are switched on and off as a whole.")
    var noEventIndex = false

    @Flag(help: "Measures nothing; writes, zeroes, discards and compares what is read.")
    var verify = false

    @Flag(help: "Ends without a word when the time is over, with requests in flight.")
    var vanish = false

    func validate() throws {
        guard (1...64).contains(queues) else { throw ValidationError("--queues is 1 to 64") }
        guard (1...256).contains(depth) else { throw ValidationError("--depth is 1 to 256") }
        guard block.isMultiple(of: 512), (512...16 << 20).contains(block) else {
            throw ValidationError("--block is a multiple of 512 up to 16777216")
        }
        guard (0...100).contains(read) else { throw ValidationError("--read is 0 to 100") }
        guard stride >= block, stride.isMultiple(of: block) else {
            throw ValidationError("--stride is a multiple of --block")
        }
        guard span >= 0 else { throw ValidationError("--span is not negative") }
        guard seconds > 0, seconds < 86_400 else { throw ValidationError("--seconds is positive") }
        guard depth * (indirect ? 1 : 3) <= 1024 else {
            throw ValidationError("--depth has no room in a queue of 1024 without --indirect")
        }
    }

    private var plan: LoadPlan {
        var plan = LoadPlan()
        plan.queues = queues
        plan.depth = depth
        plan.blockBytes = block
        plan.readShare = read
        plan.order = order
        plan.strideBytes = stride
        plan.wait = wait
        plan.seconds = seconds
        plan.spanBytes = span
        plan.usesIndirect = indirect
        plan.seed = seed
        return plan
    }

    func run() throws {
        if verify {
            var verification = try Verification(
                socket, queues: queues, span: span, hasEventIndex: !noEventIndex, seed: seed)
            return try Report.print(try verification.run())
        }
        var plan = plan
        if vanish { plan.seconds = 86_400 }
        let load = try Load(socket, plan, hasEventIndex: !noEventIndex)
        if vanish { try load.vanish(after: seconds) }
        let report = try load.run()
        try Report.print(report)
        if report.errors > 0 { throw ExitCode(1) }
    }
}

extension LoadPlan.Order: ExpressibleByArgument {}
extension LoadPlan.Wait: ExpressibleByArgument {}
