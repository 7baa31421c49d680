import NIOCore
import NIOHTTP1

/// One connection to the port for watching, on its event loop: a request, its answer, the next one.
///
/// Every step has a deadline, whatever the peer sends or takes.
final class MonitorChannel: ChannelInboundHandler {
    typealias InboundIn = HTTPServerRequestPart
    typealias OutboundOut = HTTPServerResponsePart

    private let channel: any Channel
    private let pages: MonitorPages
    private let door: MonitorDoor
    private var number: UInt64
    private var context: ChannelHandlerContext?
    private var head: HTTPRequestHead?
    private var hasBody = false
    private var isAnswering = false
    /// The answer is on its way: whatever comes of the request now is too late.
    private var isAnswered = false
    private var timer: Scheduled<Void>?
    private var answer: Task<Void, Never>?

    init(channel: any Channel, pages: MonitorPages, door: MonitorDoor, number: UInt64) {
        self.channel = channel
        self.pages = pages
        self.door = door
        self.number = number
    }

    // MARK: What the socket tells

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        setTimer(MonitorLimits.requestTime)
    }

    func channelInactive(context: ChannelHandlerContext) {
        finish()
        context.fireChannelInactive()
    }

    func handlerRemoved(context: ChannelHandlerContext) { finish() }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        context.close(promise: nil)
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        switch unwrapInboundIn(data) {
        case .head(let head):
            self.head = head
            hasBody = false
        case .body: hasBody = true
        case .end: begin()
        }
    }

    private func finish() {
        timer?.cancel()
        answer?.cancel()
        context = nil
        door.leave(number)
    }

    // MARK: Time

    private func setTimer(_ time: TimeAmount) {
        timer?.cancel()
        let bound = NIOLoopBound(self, eventLoop: channel.eventLoop)
        timer = channel.eventLoop.scheduleTask(in: time) { bound.value.timeIsOver() }
    }

    private func timeIsOver() {
        guard isAnswering, !isAnswered else { return channel.close(promise: nil) }
        send(.text(.serviceUnavailable, "the server does not answer\n"), closes: true)
        // For a peer that does not take it either.
        setTimer(.seconds(1))
    }

    // MARK: Requests

    private func begin() {
        guard let head, !isAnswering else { return channel.close(promise: nil) }
        isAnswering = true
        isAnswered = false
        number = door.set(number, isAnswered: true)
        setTimer(MonitorLimits.answerTime)
        if let refusal = pages.refusal(of: head, hasBody: hasBody) {
            return send(refusal, closes: hasBody)
        }
        let bound = NIOLoopBound(self, eventLoop: channel.eventLoop)
        let (pages, loop, uri) = (pages, channel.eventLoop, head.uri)
        if let page = pages.fixed(uri) { return send(page, closes: false) }
        answer = Task {
            let page = await pages.answer(uri)
            loop.execute { bound.value.came(page) }
        }
    }

    private func came(_ page: MonitorPage) {
        guard isAnswering, !isAnswered else { return }
        send(page, closes: false)
    }

    private func send(_ page: MonitorPage, closes: Bool) {
        guard let head, let context else { return channel.close(promise: nil) }
        isAnswered = true
        let keeps = head.isKeepAlive && !closes
        var headers = page.headers
        headers.add(name: "Content-Length", value: String(page.body.readableBytes))
        headers.add(name: "Connection", value: keeps ? "keep-alive" : "close")
        let response = HTTPResponseHead(version: .http1_1, status: page.status, headers: headers)
        context.write(wrapOutboundOut(.head(response)), promise: nil)
        if head.method != .HEAD, page.body.readableBytes > 0 {
            context.write(wrapOutboundOut(.body(.byteBuffer(page.body))), promise: nil)
        }
        let bound = NIOLoopBound(self, eventLoop: channel.eventLoop)
        context.writeAndFlush(wrapOutboundOut(.end(nil))).whenComplete { _ in
            bound.value.sent(keeps: keeps)
        }
    }

    private func sent(keeps: Bool) {
        guard keeps else { return channel.close(promise: nil) }
        head = nil
        answer = nil
        isAnswering = false
        number = door.set(number, isAnswered: false)
        setTimer(MonitorLimits.requestTime)
    }
}
