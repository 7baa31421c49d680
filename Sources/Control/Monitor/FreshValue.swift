import Foundation

/// A value that takes time to find out: found out once for all who ask at the same time, and good
/// for a while.
actor FreshValue<Value: Sendable> {
    /// Who waits for a search that does not end; more are told so at once.
    private static var waitersMax: Int { MonitorLimits.connectionsMax }

    private let goodSeconds: Double
    private let find: @Sendable () async -> Value
    private var known: Value?
    private var goodUntil = ContinuousClock.now
    private var search: Task<Value, Never>?
    private var waiters = 0
    /// When somebody asked last.
    private(set) var lastAsked = ContinuousClock.now

    /// Good for `goodSeconds` at least, and for `MonitorLimits.goodPerCost` times what it took.
    init(goodSeconds: Double, _ find: @escaping @Sendable () async -> Value) {
        self.goodSeconds = goodSeconds
        self.find = find
    }

    /// The value, as old as it may be; nil when too many wait for it already.
    func get() async -> Value? {
        lastAsked = .now
        if let known, ContinuousClock.now < goodUntil { return known }
        guard waiters < Self.waitersMax else { return nil }
        waiters += 1
        defer { waiters -= 1 }
        if let search { return await search.value }
        // A task of its own: the first caller may be cancelled meanwhile.
        let search = Task { await self.look() }
        self.search = search
        return await search.value
    }

    private func look() async -> Value {
        let begun = ContinuousClock.now
        let value = await find()
        let cost = ContinuousClock.now - begun
        goodUntil = begun + max(.seconds(goodSeconds), cost * MonitorLimits.goodPerCost)
        known = value
        search = nil
        return value
    }
}
