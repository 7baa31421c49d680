import NIOCore
import NIOHTTP1

/// What a peer of the port for watching can make the server hold or do (promise P6).
enum MonitorLimits {
    /// Connections at once: some browsers with six each, and Prometheus.
    ///
    /// Beyond, one that asks nothing makes way.
    static let connectionsMax = 64
    /// A request is complete so long after the connection began, or after the answer before it.
    static let requestTime = TimeAmount.seconds(20)
    /// A request is answered, and the answer is taken, within this time.
    static let answerTime = TimeAmount.seconds(15)
    /// Bytes of the first line and all headers.
    static let headerBytesMax = 16 << 10
    /// Figures and pictures are as old as that at most, in seconds: whoever asks more often costs
    /// nothing.
    static let figuresGoodSeconds = 1.0
    static let mapGoodSeconds = 2.0
    /// What takes long is asked less often: at most a twentieth of the time goes into answers.
    static let goodPerCost = 20.0
    /// Pictures that are kept; the oldest go first.
    static let mapsMax = 64
    /// Events in one answer.
    static let eventsMax = 256
    /// Ended jobs that the page shows.
    static let historyMax = 64

    static var decoder: NIOHTTPDecoderLimitConfiguration {
        var limits = NIOHTTPDecoderLimitConfiguration()
        limits.maxHeaderFieldSize = headerBytesMax
        limits.maxHeaderListSize = headerBytesMax
        limits.maxHeaderFieldCount = 64
        return limits
    }
}
