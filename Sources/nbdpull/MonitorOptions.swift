import ArgumentParser

/// Watching the server, and being told.
struct MonitorOptions: ParsableArguments {
    @Option(
        help: "[ADDR:]PORT for metrics, health and a page to look at, read only. (default: off)")
    var metrics: String?
    @Option(
        help:
            "Name by which that port may be asked, besides addresses and this machine's own name; *: any."
    )
    var metricsHost: [String] = []
    @Option(help: "Program to run when a job ends or breaks, a disk fails, and so on.")
    var eventExec: String?
    @Option(
        help: "Seconds without a client after which a job is reported; 0: never. (default: 1800)")
    var idleAfter: Int?
}
