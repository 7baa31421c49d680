import Testing

@testable import NBDServer

@Suite("What is sent by reference")
struct ReadStrategyTests {
    @Test("only to unix sockets, only from the page cache, only what cannot change")
    func table() {
        for isUnix in [false, true] {
            for isDirect in [false, true] {
                for neverChanges in [false, true] {
                    let found = ReadStrategy(isUnix: isUnix).sendsByReference(
                        isDirect: isDirect, neverChanges: neverChanges)
                    #expect(found == (isUnix && !isDirect && neverChanges))
                }
            }
        }
    }
}
