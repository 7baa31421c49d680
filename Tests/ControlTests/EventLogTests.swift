import Control
import Testing

@Suite("Event log")
struct EventLogTests {
    @Test("P6: who connects again and again pushes out no more than half of the log")
    func floods() {
        let log = EventLog(capacity: 8)
        log.append(ControlEvent(.jobBroken))
        for kind in [.clientConnect, .clientDisconnect, .clientRefused, .guestProblem]
            as [ControlEvent.Kind]
        {
            for _ in 0..<20 { log.append(ControlEvent(kind)) }
        }
        #expect(log.recent.map(\.sequence) == [1, 75, 76, 77, 78, 79, 80, 81])
        for _ in 0..<3 { log.append(ControlEvent(.diskProblem)) }
        // Four are the peers' half; then the oldest goes, whatever it is.
        #expect(log.recent.map(\.sequence) == [1, 78, 79, 80, 81, 82, 83, 84])
        log.append(ControlEvent(.jobEnd))
        #expect(log.recent.map(\.sequence) == [78, 79, 80, 81, 82, 83, 84, 85])
        for _ in 0..<20 { log.append(ControlEvent(.clientRefused)) }
        #expect(log.recent.map(\.sequence) == [82, 83, 84, 85, 102, 103, 104, 105])
        for _ in 0..<8 { log.append(ControlEvent(.watermark)) }
        #expect(log.recent.map(\.sequence) == Array(106...113))
        log.append(ControlEvent(.clientConnect))
        #expect(log.recent.map(\.sequence) == Array(107...114))
        #expect(log.totalCount == 114)
    }

    @Test("P6: of a part of the log, too")
    func parts() {
        let log = EventLog()
        log.append(ControlEvent(.jobEnd))
        log.append(ControlEvent(.jobBroken))
        for _ in 0..<20 { log.append(ControlEvent(.clientRefused)) }
        #expect(log.later(than: 0, max: 8).map(\.sequence) == [1, 2, 17, 18, 19, 20, 21, 22])
        #expect(log.later(than: 1, max: 3).map(\.sequence) == [2, 21, 22])
        #expect(log.later(than: 10, max: 3).map(\.sequence) == [20, 21, 22])
        #expect(log.later(than: 20, max: 9).map(\.sequence) == [21, 22])
        for _ in 0..<20 { log.append(ControlEvent(.watermark)) }
        #expect(log.later(than: 0, max: 8).map(\.sequence) == Array(35...42))
        #expect(log.later(than: 0, max: 0).isEmpty)
    }

    @Test("a log for one event never has more")
    func single() {
        let log = EventLog(capacity: 1)
        for kind in [.jobEnd, .clientConnect, .clientRefused, .jobBegin] as [ControlEvent.Kind] {
            log.append(ControlEvent(kind))
        }
        #expect(log.recent.count == 1)
    }
}
