import CLinux
import Foundation
import Glibc
import ServerInterface
import SystemLayer

/// The process that keeps adapters: it starts them, says when they are ready and when they have
/// ended, and ends them all in order when the server is gone.
///
/// The server starts it, and is heard over standard input, a JSON value in each line. One thread
/// waits for everything: a program ends with the thread that has started it.
package enum AdapterKeeper {
    /// The word by which the server starts it.
    package static let command = "adapter-keeper"

    /// Does all that it is told; returns the exit status.
    package static func run() -> Int32 {
        SystemFacts.ignoreSignalsOfCalls()
        // A service manager tells every process of a service what is meant for the server.
        for number in [SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2] { _ = signal(number, SIG_IGN) }
        var loop = KeeperLoop()
        loop.run()
        return 0
    }
}

/// What the process knows, and what it does.
struct KeeperLoop {
    private var programs: [UInt64: KeptProgram] = [:]
    private var input = Data()
    private var isInputOpen = true

    /// How often it looks at what it waits for and nothing tells, in milliseconds.
    private static let stepMilliseconds: Int32 = 5

    mutating func run() {
        while isInputOpen || !programs.isEmpty {
            let isWaiting = programs.values.contains { $0.isWatched }
            wait(milliseconds: isWaiting ? Self.stepMilliseconds : -1)
            look()
        }
    }

    private mutating func wait(milliseconds: Int32) {
        var polls = programs.values.filter { $0.descriptor >= 0 }.map {
            pollfd(fd: $0.descriptor, events: Int16(POLLIN), revents: 0)
        }
        if isInputOpen {
            polls.append(pollfd(fd: STDIN_FILENO, events: Int16(POLLIN), revents: 0))
        }
        // SAFETY: the array is live for the call and has so many entries.
        _ = unsafe poll(&polls, UInt(polls.count), milliseconds)
        if isInputOpen, polls.last?.revents != 0 { readCommands() }
    }

    private mutating func readCommands() {
        var bytes = [UInt8](repeating: 0, count: 64 << 10)
        // SAFETY: base address and count describe the live array.
        let count = unsafe bytes.withUnsafeMutableBytes {
            unsafe read(STDIN_FILENO, $0.baseAddress, $0.count)
        }
        if count < 0, errno == EINTR || errno == EAGAIN { return }
        guard count > 0 else {
            isInputOpen = false
            // Whoever starts the server again waits until all has ended.
            for id in programs.keys { programs[id]?.orphan() }
            return
        }
        input.append(contentsOf: bytes[..<count])
        while let end = input.firstIndex(of: UInt8(ascii: "\n")) {
            let line = input[..<end]
            input = Data(input[(end + 1)...])
            if let command = try? JSONDecoder().decode(KeeperCommand.self, from: line) {
                heed(command)
            }
        }
    }

    private mutating func heed(_ command: KeeperCommand) {
        switch command {
        case .start(let order):
            guard programs[order.id] == nil else {
                if programs[order.id]?.isReady == true { sayReady(order.id) }
                return
            }
            programs[order.id] = KeptProgram(order)
        case .stop(let id):
            guard programs[id] != nil else { return say(.ended(id: id, text: "")) }
            programs[id]?.stop()
        case .leave(let id): programs[id]?.leave()
        case .heard(let id): programs[id]?.hear()
        }
    }

    private mutating func look() {
        for id in Array(programs.keys) {
            switch programs[id]?.look() {
            case .ready: sayReady(id)
            case .waits: say(.waits(id: id))
            case .ended(let text):
                programs[id] = nil
                say(.ended(id: id, text: text))
            case .nothing, nil: break
            }
        }
    }

    private func sayReady(_ id: UInt64) {
        say(.ready(id: id, mayHaveLost: programs[id]?.mayHaveLost ?? false))
    }

    private func say(_ report: KeeperReport) {
        guard var data = try? JSONEncoder().encode(report) else { return }
        data.append(UInt8(ascii: "\n"))
        // Without a server nobody hears it, and its programs are ended all the same.
        try? FileHandle.standardOutput.write(contentsOf: data)
    }
}
