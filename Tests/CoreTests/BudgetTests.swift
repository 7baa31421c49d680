import Core
import Testing

/// What a connection may hold and do, in every small case.
@Suite struct BudgetTests {
    private let budget = ConnectionBudget(requests: 2, unsentBytes: 3, replies: 2, pages: 4)

    @Test("P6: a request is begun only within every bound, and waits for what keeps it")
    func permission() {
        for requests in 0...3 {
            for bytes in 0...4 {
                for replies in 0...3 {
                    let isWithin = requests < 2 && bytes < 3 && replies < 2
                    let use = ConnectionBudget.Use(
                        requests: requests, unsentBytes: bytes, replies: replies)
                    #expect(
                        budget.permission(use, isRingFull: false)
                            == (isWithin ? .granted : .waitsForPeer))
                    #expect(
                        budget.permission(use, isRingFull: true)
                            == (isWithin ? .waitsForRoom : .waitsForPeer))
                }
            }
        }
    }

    @Test("P6: buffers never exceed a connection's share, and all of it can be had")
    func pages() {
        for taken in 0...4 {
            for pages in 0...5 {
                #expect(budget.allows(pages, besides: taken) == (taken + pages <= 4))
            }
        }
    }

    @Test("P6: data leaves operations for requests that are begun, and those for what is admitted")
    func shares() {
        for data in 0...4 {
            for begun in data...4 {
                let shares = OperationShares(data: data, begun: begun)
                for count in 0...5 {
                    #expect(shares.allowData(count, own: 0) == (count < data))
                    #expect(shares.allowBegin(count, own: 0) == (count < begun))
                    for own in 0...count where shares.allowData(count, own: own) {
                        #expect(own <= data - count && shares.allowBegin(count, own: own))
                    }
                }
            }
        }
    }

    @Test("P6: peers whose disks hang leave room for the next, however many they are")
    func hungPeers() {
        let shares = OperationShares(data: 2944, begun: 3456)
        for peers in [1, 7, 12, 23, 100, 500] {
            var own = [Int](repeating: 0, count: peers)
            var count = 0
            // Each takes what it can get, and gives nothing back.
            var goesOn = true
            while goesOn {
                goesOn = false
                for peer in own.indices where shares.allowData(count, own: own[peer]) {
                    own[peer] += 1
                    count += 1
                    goesOn = true
                }
            }
            var next = 0
            while shares.allowData(count, own: next) {
                next += 1
                count += 1
            }
            #expect(next >= 2944 / (peers + 1) / 3, "\(peers) peers: \(next)")
            #expect(next >= 1)
        }
    }

    @Test("P6: a turn ends after so many steps, or after the step that moves its last byte")
    func turns() {
        for steps in 0...4 {
            for perTurn in 0...4 as ClosedRange<UInt64> {
                for perStep in 0...3 as ClosedRange<UInt64> {
                    for before in [0, 5, UInt64.max - 2] {
                        var turn = TurnBudget(
                            steps: steps, bytes: before, bytesPerTurn: perTurn)
                        var (taken, bytes) = (0, before)
                        while turn.goesOn(bytes: bytes), taken < 10 {
                            taken += 1
                            bytes =
                                bytes.addingReportingOverflow(perStep).overflow
                                ? .max : bytes + perStep
                        }
                        let byBytes =
                            perTurn == 0
                            ? 0 : perStep == 0 ? Int.max : Int((perTurn + perStep - 1) / perStep)
                        guard before != .max - 2 else {
                            // Only that it ends, whatever the sum.
                            #expect(taken <= steps)
                            continue
                        }
                        #expect(taken == min(steps, byBytes), "\(steps) \(perTurn) \(perStep)")
                    }
                }
            }
        }
    }
}
