package import IORing
import SystemLayer

/// The upstreams that are at home on one ring; used by its thread only, and never waits.
///
/// Whatever has become of a call is in `errands`, for the ring to carry out.
package struct UpstreamRing: ~Copyable {
    private var homes: [Int32: UpstreamHome] = [:]
    private var byLink: [UInt32: Int32] = [:]
    private var lastSerial: UInt32 = 0
    /// Upstreams that were asked something since the last `settle`.
    private var asked: [Int32] = []
    /// Those that share memory with their programs.
    private var sharing: [UpstreamHome] = []
    package var errands = UpstreamErrands()

    package init() {}

    deinit {
        var unheard = UpstreamErrands()
        for home in homes.values { home.end(&unheard) }
    }

    package var isEmpty: Bool { homes.isEmpty }

    /// Whether commands were asked that have not been sent.
    package var isUnsettled: Bool { !asked.isEmpty }

    /// Opens it; nil: nobody is to ask it any more.
    private mutating func home(_ source: UpstreamSource, now: UInt64) -> UpstreamHome? {
        if let home = homes[source.number] { return home }
        // A request that comes late would have its program started again, or wait for good.
        guard source.isOpenable else { return nil }
        let home = UpstreamHome(source, now: now)
        homes[source.number] = home
        home.begin(&lastSerial, now: now, &errands)
        noteLinks(home)
        return home
    }

    private mutating func noteLinks(_ home: UpstreamHome) {
        byLink = byLink.filter { $0.value != home.source.number }
        for serial in home.serials { byLink[serial] = home.source.number }
        sharing = homes.values.filter { $0.shared != nil }
    }

    /// Whether an upstream has been opened here.
    package func has(_ number: Int32) -> Bool { homes[number] != nil }

    /// Whether it is scratch, of which not even its own ring believes a byte unchecked.
    package func isScratch(_ number: Int32) -> Bool { homes[number]?.source.key != nil }

    /// Opens an upstream here.
    package mutating func open(_ source: UpstreamSource, now: UInt64) { _ = home(source, now: now) }

    /// Asks an upstream that is open here.
    package mutating func ask(_ number: Int32, _ command: UpstreamCommand) {
        guard let home = homes[number] else { return errands.tell(command, -Errno.io) }
        home.ask(command, &errands)
        note(number)
    }

    /// The same with bytes in a guest's memory.
    package mutating func ask(_ number: Int32, _ command: UpstreamCommand, _ lane: LentLane) {
        guard let home = homes[number] else { return errands.tell(command, -Errno.io) }
        home.ask(command, lane, &errands)
        note(number)
    }

    private mutating func note(_ number: Int32) {
        if asked.last != number { asked.append(number) }
    }

    /// Sends what was asked.
    package mutating func settle(now: UInt64) {
        guard !asked.isEmpty else { return }
        for number in asked { homes[number]?.pump(now: now, &errands) }
        asked.removeAll(keepingCapacity: true)
    }

    /// What was waited for has happened.
    package mutating func polled(
        _ serial: UInt32, _ kind: UpstreamErrands.Poll.Kind, now: UInt64
    ) {
        guard let number = byLink[serial], let home = homes[number] else { return }
        home.polled(kind, serial)
        home.pump(now: now, &errands)
    }

    /// A program could not be kicked: its queue is of no use.
    package mutating func kickFailed(_ serial: UInt32, now: UInt64) {
        guard let number = byLink[serial], let home = homes[number] else { return }
        home.kickFailed(serial)
        home.pump(now: now, &errands)
    }

    // MARK: Shared memory

    /// Takes what programs have answered in memory.
    package mutating func look() {
        for home in sharing where home.shared?.hasAnswers == true {
            home.pump(now: MonotonicClock.now(), &errands)
        }
    }

    /// Asks programs to call when they answer; returns whether one has in between.
    package mutating func wantCalls() -> Bool {
        var hasSome = false
        for home in sharing where home.shared?.wantCalls() == true { hasSome = true }
        return hasSome
    }

    /// Programs that are to be kicked, until `haveKicked` says that this was submitted.
    package var kickCount: Int { errands.kicks.count }

    /// How one of them is kicked, and the number of its queue.
    package func kick(_ position: Int) -> (CallRing, serial: UInt32) {
        (errands.kicks[position].kick, errands.kicks[position].serial)
    }

    package mutating func haveKicked() {
        errands.kicks.removeAll(keepingCapacity: true)
        errands.closed.removeAll()
    }

    /// Takes a message; `find` gives the upstream of a number.
    package mutating func take(
        _ message: UpstreamMessage, now: UInt64, find: (Int32) -> UpstreamSource?
    ) {
        switch message {
        case .ask(let number, let request):
            guard let source = find(number) else { return request.answer(-Errno.io, []) }
            guard let home = home(source, now: now) else {
                return request.answer(-Errno.canceled, [])
            }
            home.ask(request, &errands)
            home.pump(now: now, &errands)
        case .connected(let number, let result):
            guard let home = homes[number] else { return }
            home.connected(result, &lastSerial, now: now, &errands)
            noteLinks(home)
        case .close(let number):
            guard let home = homes.removeValue(forKey: number) else { return }
            let links = Set(byLink.filter { $0.value == number }.keys)
            errands.polls.removeAll { links.contains($0.serial) }
            byLink = byLink.filter { $0.value != number }
            sharing.removeAll { $0 === home }
            home.end(&errands)
        }
    }

    /// The ring's clock has ticked.
    package mutating func tick(now: UInt64) {
        for home in homes.values { home.tick(now: now, &errands) }
    }
}
