import Foundation
import Glibc
import ServerInterface
import Synchronization
import Testing

@testable import Control

/// Counts on any thread.
final class Counter: Sendable {
    private let value = Mutex(0)
    var count: Int { value.withLock { $0 } }
    func add() { value.withLock { $0 += 1 } }
}

/// The operator's program that is run on events.
@Suite(.serialized) struct EventProgramTests {
    private final class Bench {
        let directory: String
        let log: EventLog

        init() throws {
            // As in a server: a program may end without reading what it is told.
            signal(SIGPIPE, SIG_IGN)
            directory =
                FileManager.default.temporaryDirectory.path + "/np-"
                + UUID().uuidString.prefix(8).lowercased()
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true)
            log = EventLog()
        }

        deinit { try? FileManager.default.removeItem(atPath: directory) }

        func program(_ script: String, milliseconds: Int = 20_000) throws -> EventProgram {
            let path = directory + "/program"
            try "#!/bin/sh\ncd '\(directory)'\n\(script)\n".write(
                toFile: path, atomically: true, encoding: .utf8)
            try FileManager.default.setAttributes(
                [.posixPermissions: 0o700], ofItemAtPath: path)
            let program = try EventProgram(
                path: path, environment: ["PATH": "/usr/bin:/bin", "NBDPULL_SOCKET": "/c.sock"],
                milliseconds: milliseconds)
            program.report(to: log)
            return program
        }

        func text(_ name: String) -> String {
            (try? String(contentsOfFile: directory + "/" + name, encoding: .utf8)) ?? ""
        }

        var failures: [String] {
            log.recent.filter { $0.event == .eventProgramFailed }.compactMap(\.message)
        }
    }

    private func event(_ kind: ControlEvent.Kind, _ message: String = "because") -> ControlEvent {
        var event = ControlEvent(
            kind, domain: "vm 1", id: "j-1", disk: "vda", usedBytes: 5, limitBytes: 7,
            message: message)
        event.sequence = 3
        return event
    }

    @Test("the program is told by variables and by one line of JSON, each event once and in order")
    func told() async throws {
        let bench = try Bench()
        let program = try bench.program("env | sort >> env; cat >> input")
        var end = event(.jobEnd)
        end.outcome = "failed"
        program.offer(event(.jobBroken))
        program.offer(end)
        // Nothing that somebody has to be woken for.
        program.offer(event(.clientConnect))
        program.finish(seconds: 20)
        let variables = bench.text("env").split(separator: "\n").map(String.init)
        for line in [
            "EVENT=job-broken", "EVENT_DOMAIN=vm 1", "EVENT_JOB=j-1", "EVENT_DISK=vda",
            "EVENT_MESSAGE=because", "EVENT_SEVERITY=error", "EVENT_USED_BYTES=5",
            "EVENT_LIMIT_BYTES=7", "EVENT_SEQUENCE=3", "EVENT_OUTCOME=failed",
            "NBDPULL_SOCKET=/c.sock",
        ] {
            #expect(variables.contains(line), "\(line) in \(variables)")
        }
        let lines = bench.text("input").split(separator: "\n")
        let events = try lines.map {
            try ControlJSON.decode(ControlEvent.self, from: Data($0.utf8))
        }
        #expect(events.map(\.event) == [.jobBroken, .jobEnd])
        #expect(events.last?.outcome == "failed")
        #expect(bench.failures.isEmpty)
    }

    @Test("P6: a program that hangs is ended with all that it started, and nobody waits for it")
    func hangs() async throws {
        let bench = try Bench()
        let program = try bench.program(
            "echo run >> runs; sleep 300 & echo $! >> children; trap '' TERM; sleep 300",
            milliseconds: 300)
        let begun = ContinuousClock.now
        program.offer(event(.jobBroken))
        for _ in 0..<(EventProgram.waitingMax + 50) { program.offer(event(.diskFailed)) }
        #expect(ContinuousClock.now - begun < .seconds(2))
        #expect(try await eventually { bench.failures.count >= 2 })
        #expect(
            bench.failures.contains { $0.contains("it did not end within") }, "\(bench.failures)")
        // What did not fit is said once.
        #expect(
            bench.failures.contains { $0.contains("events came faster") }, "\(bench.failures)")
        program.finish(seconds: 0)
        let child = try #require(
            bench.text("children").split(separator: "\n").first.flatMap { Int32($0) })
        #expect(
            try await eventually { kill(child, 0) != 0 || isZombie(child) })
        // The run that has begun is over before anything else begins.
        #expect(try await eventually { bench.text("runs").split(separator: "\n").count <= 3 })
    }

    private func isZombie(_ process: Int32) -> Bool {
        let text = (try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)) ?? ""
        return text.isEmpty || text.contains(") Z ")
    }

    @Test("a program that fails, is killed or cannot be started is an event, and the next is run")
    func fails() async throws {
        let bench = try Bench()
        let program = try bench.program(
            """
            case $EVENT in
            job-broken) exit 7 ;;
            disk-failed) kill -9 $$ ;;
            job-idle) exec 0<&-; echo fine >> done ;;
            *) echo done >> done; exec rm program ;;
            esac
            """)
        program.offer(event(.jobBroken))
        program.offer(event(.diskFailed))
        program.offer(event(.jobIdle, String(repeating: "x", count: 200_000)))
        program.offer(event(.jobEnd))
        program.offer(event(.watermark))
        program.finish(seconds: 20)
        let failures = bench.failures
        #expect(failures.count == 3, "\(failures)")
        #expect(failures.first?.hasSuffix("job-broken (event 3): it ended with status 7") == true)
        #expect(failures.dropFirst().first?.contains("ended by signal 9") == true)
        #expect(failures.last?.contains("cannot be started: No such file") == true)
        #expect(bench.text("done") == "fine\ndone\n")
        // The log has told nobody of the program's own failure.
        #expect(!EventProgram.kinds.contains(.eventProgramFailed))
    }

    @Test("it inherits no descriptor, no blocked signal and no variable but those it is given")
    func inherits() async throws {
        let bench = try Bench()
        let leaked = dup(STDERR_FILENO)
        defer { close(leaked) }
        let program = try bench.program(
            "ls /proc/self/fd > fds; grep SigBlk /proc/self/status > blocked; env | sort > env")
        program.offer(event(.jobEnd))
        program.finish(seconds: 20)
        // 3 is the directory that ls reads.
        #expect(bench.text("fds").split(separator: "\n").count <= 4, "\(bench.text("fds"))")
        #expect(bench.text("blocked").contains("0000000000000000"))
        #expect(!bench.text("env").contains("HOME=") && !bench.text("env").contains("USER="))
        #expect(bench.failures.isEmpty, "\(bench.failures)")
    }

    @Test("what is no program is an event at the start, and keeps nobody from his disks")
    func missing() throws {
        for path in ["/no/such/program", "/etc/passwd", "/etc"] {
            let program = try EventProgram(path: path, environment: [:])
            let log = EventLog()
            program.report(to: log)
            #expect(log.recent.map(\.event) == [.eventProgramFailed])
            #expect(log.recent.first?.message?.contains("'\(path)' is no program") == true)
        }
        let error = #expect(throws: ControlError.self) {
            try EventProgram(path: "relative", environment: [:])
        }
        #expect(error?.message.contains("--event-exec 'relative'") == true)
    }
}
