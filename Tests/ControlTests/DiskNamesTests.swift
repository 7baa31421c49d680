import ServerInterface
import Testing

@testable import Control

/// Events of disks whose names are not known yet, or that are attached no more.
@Suite struct DiskNamesTests {
    @Test("what is told of a disk before it has its name is told then, once")
    func early() {
        var names = DiskNames()
        let (one, other) = (DiskID(number: 1), DiskID(number: 2))
        names.keep(.diskProblem, of: one, "a")
        names.keep(.diskProblem, of: other, "b")
        #expect(names.name(of: one) == nil)
        #expect(names.know(one, domain: "vm1", target: "vda").map(\.message) == ["a"])
        #expect(names.know(one, domain: "vm1", target: "vda").isEmpty)
        #expect(names.name(of: one)?.target == "vda")
        #expect(names.know(other, domain: "vm1", target: "vdb").map(\.message) == ["b"])
    }

    @Test("P6: neither names nor what is told of strange disks grow without end")
    func bounded() {
        var names = DiskNames()
        for number in 0..<1_000 as Range<UInt64> {
            names.keep(.diskProblem, of: DiskID(number: 1), "\(number)")
        }
        let told = names.know(DiskID(number: 1), domain: "vm1", target: "vda")
        #expect(told.count == 256 && told.last?.message == "999")
        for number in 2..<10_000 as Range<UInt64> {
            _ = names.know(DiskID(number: number), domain: "vm1", target: "vda")
        }
        #expect(names.name(of: DiskID(number: 1)) == nil)
        #expect(names.name(of: DiskID(number: 9_999)) != nil)
    }
}
