import Testing

@testable import NBDServer

@Suite("Looking before sleeping")
struct BriefWaitTests {
    private let short = BriefWait.longestNanoseconds / 2
    private let long = BriefWait.longestNanoseconds + 1

    private func looking() -> BriefWait {
        var wait = BriefWait()
        for _ in 0..<BriefWait.shortSleepsToBegin { wait.slept(short, completions: 1) }
        return wait
    }

    @Test("nothing is looked for at first, nor on a ring that rests")
    func rests() {
        var wait = BriefWait()
        for _ in 0..<1000 {
            #expect(wait.nanoseconds == 0)
            wait.slept(long, completions: 1)
        }
    }

    @Test("a run of short sleeps begins it, a longer one in between does not count")
    func begins() {
        var wait = BriefWait()
        for _ in 1..<BriefWait.shortSleepsToBegin { wait.slept(short, completions: 1) }
        #expect(wait.nanoseconds == 0)
        wait.slept(long, completions: 1)
        for _ in 1..<BriefWait.shortSleepsToBegin { wait.slept(short, completions: 1) }
        #expect(wait.nanoseconds == 0)
        wait.slept(short, completions: 1)
        #expect(wait.nanoseconds == BriefWait.longestNanoseconds)
    }

    @Test("several completions at once are no reason to begin")
    func crowds() {
        var wait = BriefWait()
        for _ in 0..<1000 { wait.slept(short, completions: 2) }
        #expect(wait.nanoseconds == 0)
    }

    @Test("it goes on while it finds something, and ends when it does not")
    func ends() {
        var wait = looking()
        for _ in 0..<1000 { wait.found(completions: 1) }
        #expect(wait.nanoseconds > 0)
        for _ in 0..<BriefWait.missesToEnd { wait.missed() }
        #expect(wait.nanoseconds == 0)
    }

    @Test("mostly in vain, it ends soon")
    func mostlyVain() {
        var wait = looking()
        var looks = 0
        while wait.nanoseconds > 0, looks < 1000 {
            looks += 1
            if looks % 3 == 0 { wait.found(completions: 1) } else { wait.missed() }
        }
        #expect(looks < 20)
    }

    @Test("how long a look may take is also what a short sleep is")
    func ownLength() {
        let longest = BriefWait.longestForDisks
        var wait = BriefWait(longest: longest)
        for _ in 0..<1000 { wait.slept(longest + 1, completions: 1) }
        #expect(wait.nanoseconds == 0)
        for _ in 0..<BriefWait.shortSleepsToBegin { wait.slept(longest, completions: 1) }
        #expect(wait.nanoseconds == longest)
    }

    @Test("a crowd ends it")
    func crowdEnds() {
        var wait = looking()
        for _ in 0..<BriefWait.missesToEnd { wait.found(completions: 3) }
        #expect(wait.nanoseconds == 0)
    }
}
