import Testing
import VhostClient
import VhostProtocol

@Suite("Virtqueues")
struct VirtqueueTests {
    private static let buffer = [
        DriverBuffer(0x1000, 16), DriverBuffer(0x1100, 1, isWritable: true),
    ]

    @Test(
        "an available index may move by the queue's size and no further", arguments: [0, 7, 65_533])
    func indexJumps(base: Int) throws {
        let base = UInt16(base)
        for jump in UInt16.min...UInt16.max where jump < 12 || jump > 65_520 || jump % 257 == 0 {
            let rig = try Rig(base: base)
            rig.memory.write(little(base &+ jump), rig.driver.available + 2)
            if jump <= 4 {
                #expect(try rig.hasNext() == (jump > 0))
            } else {
                do throws(VirtqueueFault) {
                    _ = try rig.hasNext()
                    Issue.record("a jump by \(jump) is taken")
                } catch {
                    #expect(error == .availableIndex(next: base, found: base &+ jump))
                }
            }
        }
    }

    @Test("a head out of the table breaks the queue", arguments: [4, 5, 255, 32_768, 65_535])
    func heads(head: Int) throws {
        let rig = try Rig()
        rig.memory.write(little(UInt16(1)) + little(UInt16(head)), rig.driver.available + 2)
        do throws(VirtqueueFault) {
            _ = try rig.next()
            Issue.record("head \(head) is taken")
        } catch { #expect(error == .headOutOfRange(UInt16(head))) }
    }

    @Test("a head in flight is not taken twice, and is when it was given back")
    func twice() throws {
        let rig = try Rig()
        _ = rig.driver.stage(Self.buffer)
        rig.driver.publish()
        let head = try #require(try rig.next()?.head)
        rig.complete(head)
        _ = rig.publish()
        for index in UInt16(1)...2 {
            rig.memory.write(little(head), rig.driver.available + 4 + 2 * UInt64(index))
        }
        rig.memory.write(little(UInt16(3)), rig.driver.available + 2)
        #expect(try rig.next()?.head == head)
        do throws(VirtqueueFault) {
            _ = try rig.next()
            Issue.record("head \(head) is taken twice")
        } catch { #expect(error == .headInFlight(head)) }
        #expect(rig.inFlightCount == 1)
    }

    @Test("a head that was completed is not taken again before the guest can know")
    func tooEarly() throws {
        let rig = try Rig()
        _ = rig.driver.stage(Self.buffer)
        rig.driver.publish()
        let head = try #require(try rig.next()?.head)
        // The guest makes the same chain available as often as it likes, while the device works.
        for index in UInt16(1)...9 {
            rig.complete(head)
            rig.memory.write(little(head), rig.driver.available + 4 + 2 * UInt64(index % 4))
            rig.memory.write(little(index + 1), rig.driver.available + 2)
            do throws(VirtqueueFault) {
                _ = try rig.next()
                Issue.record("head \(head) is taken too early")
            } catch {
                #expect(error == .headInFlight(head))
                return
            }
        }
    }

    @Test("at most as many chains are in flight as there are entries, for every size")
    func sizes() throws {
        for shift in 0...10 {
            let size = UInt16(1) << UInt16(shift)
            let rig = try Rig(size: size, hasEventIndex: true)
            for _ in 0..<size {
                #expect(rig.driver.stage([DriverBuffer(0xf000, 1, isWritable: true)]) != nil)
            }
            rig.driver.publish()
            var heads: [UInt16] = []
            while let chain = try rig.next() { heads.append(chain.head) }
            #expect(heads.count == Int(size) && rig.inFlightCount == Int(size))
            for head in heads.reversed() { rig.complete(head) }
            #expect(rig.publish())
            #expect(try rig.driver.collect().map(\.id) == heads.reversed().map(UInt32.init))
            #expect(rig.memory.strays == 0)
        }
    }

    @Test("rings that are not whole in memory are refused")
    func ringsOutside() throws {
        let memory = GuestArray([(0, 0x1000), (0x1000, 0x1000)])
        let good = RingAddresses(descriptors: 0, available: 0x100, used: 0x200)
        let bad = [
            RingAddresses(descriptors: 0x2000, available: 0x100, used: 0x200),
            RingAddresses(descriptors: 0xff0, available: 0x100, used: 0x200),
            RingAddresses(descriptors: 0, available: 0x1ff8, used: 0x200),
            RingAddresses(descriptors: 0, available: 0x100, used: 0xff8),
            RingAddresses(descriptors: 0, available: 0x100, used: .max - 7),
        ]
        for rings in bad + [good] {
            let setup = QueueSetup(
                size: 4, base: 0, rings: rings, hasEventIndex: true, hasIndirectDescriptors: true)
            do throws(VirtqueueFault) {
                _ = try Virtqueue(memory, setup)
                #expect(rings == good)
            } catch {
                #expect(rings != good && error == .ringOutsideMemory)
            }
        }
        #expect(memory.strays == 0)
    }

    @Test("without event indices flags say who wants to be told")
    func flags() throws {
        let rig = try Rig()
        rig.suppressKicks()
        _ = rig.driver.stage(Self.buffer)
        rig.driver.publish()
        #expect(!rig.driver.wantsKick())
        #expect(try rig.wantKicks())
        let head = try #require(try rig.next()?.head)
        #expect(try !rig.wantKicks())
        _ = rig.driver.stage(Self.buffer)
        rig.driver.publish()
        #expect(rig.driver.wantsKick())
        rig.driver.suppressCalls()
        rig.complete(head)
        #expect(!rig.publish())
        rig.driver.wantCalls()
        let other = try #require(try rig.next()?.head)
        rig.complete(other)
        #expect(rig.publish())
        #expect(!rig.publish())
    }

    @Test(
        "a kick that was asked for and is not needed any more can be taken back",
        arguments: [
            UInt16(0), 1, 65_535,
        ])
    func kickTakenBack(start: UInt16) throws {
        let rig = try Rig(base: start, hasEventIndex: true)
        for _ in 0..<3 {
            #expect(try !rig.wantKicks())
            rig.suppressKicks()
            for count in 1...2 {
                for _ in 0..<count { _ = rig.driver.stage(Self.buffer) }
                rig.driver.publish()
                #expect(!rig.driver.wantsKick())
            }
            // What came without one is found before the next is asked for.
            #expect(try rig.wantKicks())
            while let head = try rig.next()?.head { rig.complete(head) }
            _ = rig.publish()
            _ = try rig.driver.collect()
            #expect(try !rig.wantKicks())
            _ = rig.driver.stage(Self.buffer)
            rig.driver.publish()
            #expect(rig.driver.wantsKick())
            let head = try #require(try rig.next()?.head)
            rig.complete(head)
            _ = rig.publish()
            _ = try rig.driver.collect()
        }
    }

    @Test("an event index is passed exactly when it lies between the old and the new index")
    func eventIndex() throws {
        for start in [UInt16(0), 65_533] {
            for step in UInt16(1)...4 {
                for event in -6...6 {
                    let rig = try Rig(base: start, hasEventIndex: true)
                    // The first call is never left out.
                    _ = rig.driver.stage(Self.buffer)
                    rig.driver.publish()
                    let first = try #require(try rig.next()?.head)
                    rig.complete(first)
                    #expect(rig.publish())
                    _ = try rig.driver.collect()
                    let now = start &+ 1
                    let wanted = now &+ UInt16(truncatingIfNeeded: event)
                    rig.memory.write(little(wanted), rig.driver.available + 4 + 8)
                    for _ in 0..<step {
                        _ = rig.driver.stage([DriverBuffer(0x1000, 1, isWritable: true)])
                    }
                    rig.driver.publish()
                    while let head = try rig.next()?.head {
                        rig.complete(head)
                    }
                    let expected = event >= 0 && event < Int(step)
                    #expect(rig.publish() == expected, "\(step) \(event)")
                }
            }
        }
    }
}
