import AdapterKeeper
import ArgumentParser
import Control
import Dispatch
import Foundation
import Pushing
import Synchronization

/// The executable: its commands, and how errors leave it.
@main
struct Nbdpull: AsyncParsableCommand {
    static let version = "0.1.0"

    static let configuration = CommandConfiguration(
        commandName: "nbdpull",
        abstract: "Serve virtual machine disks over NBD, and back them up in pull mode.",
        version: version,
        groupedSubcommands: [
            CommandGroup(name: "Server", subcommands: [Serve.self, Export.self]),
            CommandGroup(
                name: "Domains",
                subcommands: [
                    Define.self, Undefine.self, List.self, DumpXML.self, DomBlkList.self,
                ]),
            CommandGroup(
                name: "Disks",
                subcommands: [
                    AttachDisk.self, AttachDevice.self, DetachDisk.self, UpdateDevice.self,
                    ChangeMedia.self, BlockResize.self, DiskRestore.self,
                    DiskExportState.self, DiskImportState.self,
                ]),
            CommandGroup(
                name: "Backup",
                subcommands: [
                    BackupBegin.self, BackupDumpXML.self, BackupList.self, BackupEnd.self,
                    DomJobInfo.self, DomJobAbort.self, Event.self,
                ]),
            CommandGroup(
                name: "Checkpoints",
                subcommands: [
                    CheckpointCreate.self, CheckpointCreateAs.self, CheckpointList.self,
                    CheckpointInfo.self, CheckpointDumpXML.self, CheckpointParent.self,
                    CheckpointDelete.self,
                ]),
        ])

    static func main() async {
        SystemCalls.quietDispatch()
        // Started by the server only, with nothing else on its command line.
        if CommandLine.arguments.dropFirst().elementsEqual([PushWorker.command]) {
            Foundation.exit(PushWorker.run())
        }
        if CommandLine.arguments.dropFirst().elementsEqual([AdapterKeeper.command]) {
            Foundation.exit(AdapterKeeper.run())
        }
        do {
            var command = if let serve { serve } else { try await asyncParseAsRoot() }
            if var command = command as? any AsyncParsableCommand {
                try await command.run()
            } else {
                try command.run()
            }
        } catch let error as ControlError {
            report(error)
            Console.drain()
            Foundation.exit(1)
        } catch {
            leave(with: error)
        }
    }

    /// The command that machines wait for, parsed without a look at all the others; nil when it is
    /// another one, or something is wrong with it.
    private static var serve: (any ParsableCommand)? {
        let arguments = CommandLine.arguments.dropFirst()
        guard arguments.first == Serve._commandName else { return nil }
        return try? Serve.parse(Array(arguments.dropFirst()))
    }

    // Looked for by itself, as the arguments may be what is wrong.
    private static var wantsJSON: Bool {
        CommandLine.arguments.prefix { $0 != "--" }.contains("--json")
    }

    private static func report(_ error: ControlError) {
        if wantsJSON, let data = try? ControlJSON.encode(ErrorBody(error)) {
            Console.error(String(decoding: data, as: UTF8.self))
        } else {
            Console.error("error: \(error.message)")
        }
    }

    // Help and version are answers; everything else is a usage error unless it says otherwise.
    private static func leave(with error: any Error) -> Never {
        let code = exitCode(for: error)
        var text = fullMessage(for: error)
        if code == .success {
            if !text.isEmpty { Console.out(text + "\n") }
        } else if wantsJSON {
            report(
                ControlError(
                    .invalidArgument, code: "usage", status: 400, detail: message(for: error)))
        } else {
            if text.hasPrefix("Error: ") { text = "error: " + text.dropFirst("Error: ".count) }
            if !text.isEmpty { Console.error(text) }
        }
        Console.drain()
        Foundation.exit(code.rawValue)
    }
}

/// Standard output and standard error.
enum Console {
    /// Writes text as it is; a reader that has gone ends the program quietly.
    static func out(_ text: String) {
        do {
            try FileHandle.standardOutput.write(contentsOf: Data(text.utf8))
        } catch {
            let number = number(of: error)
            if number != EPIPE {
                write("error: cannot write to standard output: \(SystemCalls.errorText(number))")
            }
            Foundation.exit(1)
        }
    }

    private static func number(of error: any Error) -> Int32 {
        let found = error as NSError
        let cause = found.userInfo[NSUnderlyingErrorKey] as? NSError ?? found
        return cause.domain == NSPOSIXErrorDomain ? Int32(clamping: cause.code) : EIO
    }

    /// Writes one line to standard error; while a server runs, when its turn comes.
    static func error(_ line: String) {
        guard serves.load(ordering: .relaxed) else { return write(line) }
        let isTaken = waiting.add(1, ordering: .relaxed).newValue <= waitingMax
        guard isTaken else {
            waiting.subtract(1, ordering: .relaxed)
            return
        }
        queue.async {
            write(line)
            waiting.subtract(1, ordering: .relaxed)
        }
    }

    /// From now on nobody waits for standard error: a reader that takes nothing holds up no thread
    /// but that of this queue, which the log of events uses as well.
    static func beginServing() { serves.store(true, ordering: .relaxed) }

    /// Before the program ends: waits until what is queued is written, unless nobody reads it.
    static func drain() {
        guard serves.load(ordering: .relaxed) else { return }
        let done = DispatchSemaphore(value: 0)
        queue.async { done.signal() }
        if done.wait(timeout: .now() + drainSeconds) == .timedOut { _exit(1) }
    }

    private static let drainSeconds = 2.0

    static let queue = DispatchQueue(label: "nbdpull.log")
    private static let serves = Atomic<Bool>(false)
    private static let waiting = Atomic<Int>(0)
    /// Lines that wait to be written before more are left out.
    private static let waitingMax = 1024

    private static func write(_ line: String) {
        try? FileHandle.standardError.write(contentsOf: Data((line + "\n").utf8))
    }
}
