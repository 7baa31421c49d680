import Testing

@testable import NBDServer

@Suite("What is sent by reference")
struct ReadStrategyTests {
    @Test("only pages of the page cache that cannot change; over TCP only to a lone connection")
    func table() {
        for isUnix in [false, true] {
            for clients in 1...3 {
                let strategy = ReadStrategy(isUnix: isUnix, clients: clients)
                for isDirect in [false, true] {
                    for neverChanges in [false, true] {
                        let found = strategy.sendsByReference(
                            isDirect: isDirect, neverChanges: neverChanges)
                        let pays = isUnix || clients == 1
                        #expect(found == (pays && !isDirect && neverChanges))
                    }
                }
            }
        }
    }
}
