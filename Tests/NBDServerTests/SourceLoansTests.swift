import Testing

@testable import NBDServer

/// Lenders, their peers and guests, one atomic step at a time, over the server's own counters.
///
/// What a ring does with the counters is told again here: announce, look, lend, recall, wait, go.
private final class World {
    enum LenderStep { case start, announced, open, sent, left }
    struct Lender {
        var step = LenderStep.start
        var isRecalled = false
        /// What the disk held when its page was sent, until the peer has read the page.
        var onLoan: Int?
        /// The ring has given up watching the peer.
        var isUnwatched = false
        var isBroken = false
    }
    enum WriterStep { case start, announced, waiting, admitted, left }

    let loans: SourceLoans
    let exports: [ExportLoans]
    var lenders: [Lender]
    var writers: [WriterStep]
    var version = 0
    var faults: [String] = []
    /// `loansSettled` is on its way.
    var isTold = false
    let hasLimit: Bool
    let mayLoseSight: Bool
    let mistake: Mistake?

    /// A step left out, to show that the walk finds out.
    enum Mistake: CaseIterable {
        case lenderDoesNotLook, guestDoesNotLook, peerIsNotWaitedFor, guestIsNotTold
        case unwatchedIsForgotten, nothingBreaksAtTheLimit
    }

    init(
        lenders: Int, writers: Int, hasLimit: Bool, mayLoseSight: Bool, mistake: Mistake? = nil
    ) {
        self.mistake = mistake
        let loans = SourceLoans(disk: DiskID(number: 1), homeRing: 0)
        self.loans = loans
        exports = (0..<lenders).map { _ in ExportLoans(loans) }
        self.lenders = Array(repeating: Lender(), count: lenders)
        self.writers = Array(repeating: .start, count: writers)
        self.hasLimit = hasLimit
        self.mayLoseSight = mayLoseSight
    }

    /// Everything that can happen next.
    var moves: [Move] {
        var moves: [Move] = []
        for (index, lender) in lenders.enumerated() {
            switch lender.step {
            case .start, .announced, .open: moves.append(.lender(index))
            case .sent
            where lender.isRecalled
                && (lender.onLoan == nil || mistake == .peerIsNotWaitedFor):
                moves.append(.lender(index))
            case .sent where mayLoseSight: moves.append(.loseSight(index))
            case .sent, .left: break
            }
            if lender.onLoan != nil { moves.append(.take(index)) }
        }
        for (index, step) in writers.enumerated() {
            switch step {
            case .start, .announced, .admitted: moves.append(.writer(index))
            case .waiting where hasLimit: moves.append(.limit)
            case .waiting, .left: break
            }
        }
        if isTold { moves.append(.told) }
        return moves
    }

    enum Move: Equatable {
        case lender(Int), take(Int), loseSight(Int), writer(Int), limit, told
    }

    func make(_ move: Move) {
        switch move {
        case .lender(let index): lend(index)
        case .take(let index):
            if let seen = lenders[index].onLoan, seen == version || lenders[index].isBroken {
                lenders[index].onLoan = nil
            } else {
                faults.append("lender \(index): its peer read what a guest wrote")
                lenders[index].onLoan = nil
            }
        case .loseSight(let index):
            exports[index].loseSight()
            leave(index)
        case .writer(let index): write(index)
        case .limit:
            for index in exports.indices
            where exports[index].isOutstanding && mistake != .nothingBreaksAtTheLimit {
                lenders[index].isBroken = true
            }
            admit()
        case .told:
            isTold = false
            if !loans.hasLenders {
                breakUnwatched()
                admit()
            }
        }
    }

    private func lend(_ index: Int) {
        switch lenders[index].step {
        case .start:
            exports[index].announce()
            lenders[index].step = .announced
        case .announced:
            if loans.hasWriters, mistake != .lenderDoesNotLook {
                leave(index)
            } else {
                lenders[index].step = .open
            }
        case .open:
            // A recall is read between two sends.
            if lenders[index].isRecalled { return leave(index) }
            lenders[index].onLoan = version
            lenders[index].step = .sent
        case .sent: leave(index)
        case .left: break
        }
    }

    private func leave(_ index: Int) {
        lenders[index].step = .left
        if exports[index].dismiss(), mistake != .guestIsNotTold { isTold = true }
    }

    private func write(_ index: Int) {
        switch writers[index] {
        case .start:
            loans.announceWriter()
            writers[index] = .announced
        case .announced:
            if loans.hasLenders, mistake != .guestDoesNotLook {
                writers[index] = .waiting
                for lender in lenders.indices where lenders[lender].step != .start {
                    lenders[lender].isRecalled = true
                }
            } else {
                breakUnwatched()
                writers[index] = .admitted
            }
        case .admitted:
            version += 1
            loans.dismissWriter()
            writers[index] = .left
        case .waiting, .left: break
        }
    }

    private func breakUnwatched() {
        for index in exports.indices
        where exports[index].hasUnwatched && mistake != .unwatchedIsForgotten {
            lenders[index].isBroken = true
        }
    }

    private func admit() {
        for index in writers.indices where writers[index] == .waiting { writers[index] = .admitted }
    }

    /// Faults, and what must not be left when nothing can happen any more.
    func judge() {
        if writers.contains(.waiting) { faults.append("a guest waits for ever") }
        if loans.hasWriters { faults.append("a writer is counted that is gone") }
    }
}

@Suite("Loans of source pages")
struct SourceLoansTests {
    /// Walks every order of moves; returns how many there were, and the first fault.
    private func walk(_ make: () -> World) -> (orders: Int, fault: String?, broken: Int) {
        var path: [Int] = []
        var orders = 0
        var broken = 0
        while true {
            let world = make()
            var widths: [Int] = []
            while true {
                let moves = world.moves
                if moves.isEmpty { break }
                if widths.count == path.count { path.append(0) }
                world.make(moves[path[widths.count]])
                widths.append(moves.count)
            }
            world.judge()
            orders += 1
            if world.lenders.contains(where: \.isBroken) { broken += 1 }
            if let fault = world.faults.first { return (orders, "\(fault): \(path)", broken) }
            while let last = path.last, last + 1 == widths[path.count - 1] { path.removeLast() }
            guard let last = path.popLast() else { return (orders, nil, broken) }
            path.append(last + 1)
        }
    }

    @Test("P1: no order of steps lets a guest change what a backup client has on loan")
    func everyOrder() {
        for (lenders, writers) in [(1, 1), (2, 1), (1, 2)] {
            let found = walk {
                World(lenders: lenders, writers: writers, hasLimit: false, mayLoseSight: false)
            }
            #expect(found.fault == nil)
            #expect(found.broken == 0, "a job broke though its client took everything")
            #expect(found.orders > 10)
        }
    }

    @Test("P2: a guest that has waited long enough goes on, and the jobs it waited for are broken")
    func limits() {
        for (lenders, writers) in [(1, 1), (2, 1), (1, 2)] {
            let found = walk {
                World(lenders: lenders, writers: writers, hasLimit: true, mayLoseSight: false)
            }
            #expect(found.fault == nil)
            #expect(found.broken > 0)
        }
    }

    @Test("P1: pages that nobody watches any more break their job when a guest comes")
    func lostPeers() {
        for hasLimit in [false, true] {
            let found = walk {
                World(lenders: 1, writers: 2, hasLimit: hasLimit, mayLoseSight: true)
            }
            #expect(found.fault == nil)
            #expect(found.broken > 0)
        }
    }

    @Test("canary: every step that is left out is found out", arguments: World.Mistake.allCases)
    private func canary(mistake: World.Mistake) {
        let found = walk {
            World(
                lenders: 1, writers: 1, hasLimit: mistake == .nothingBreaksAtTheLimit,
                mayLoseSight: mistake == .unwatchedIsForgotten, mistake: mistake)
        }
        #expect(found.fault != nil)
    }

    @Test("only who announces, looks, and steps back keeps out of a guest's way")
    func attempts() {
        let loans = SourceLoans(disk: DiskID(number: 1), homeRing: 0)
        let export = ExportLoans(loans)
        let other = ExportLoans(loans)
        #expect(export.lend() == .lends)
        #expect(export.isOutstanding && !other.isOutstanding && loans.hasLenders)
        loans.announceWriter()
        #expect(other.lend() == .refused && !other.isOutstanding)
        #expect(export.dismiss(), "the guest that waits is told")
        #expect(!loans.hasLenders && !export.isOutstanding)
        loans.dismissWriter()
        #expect(other.lend() == .lends)
        #expect(!other.dismiss(), "nobody waits")
        export.loseSight()
        #expect(export.isOutstanding && !other.isOutstanding)
    }
}
