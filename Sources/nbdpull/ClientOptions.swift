import ArgumentParser
import Control
import Foundation
import Glibc

/// Options of every command that prints.
struct OutputOptions: ParsableArguments {
    @Flag(name: .long, help: "Print JSON.")
    var json = false

    @Flag(name: [.customShort("q"), .long], help: "Omit informational lines and table headings.")
    var quiet = false

    /// Prints the server's answer as JSON, or `text` of it.
    func show<Value: Decodable>(
        _ data: Data, as type: Value.Type, _ text: (Value) -> String
    ) throws(ControlError) {
        if json {
            Console.out(String(decoding: data, as: UTF8.self))
            return
        }
        do {
            Console.out(text(try ControlJSON.decode(type, from: data)))
        } catch {
            throw .internalError("the server's answer is not understood: \(error)")
        }
    }

    /// Prints one informational line, unless quiet.
    func inform(_ line: String) {
        if !quiet && !json { Console.out(line + "\n") }
    }
}

/// Options of every client command.
struct ClientOptions: ParsableArguments {
    @Option(
        name: .long,
        help: "The server's control socket. (default: NBDPULL_SOCKET, or the run directory's)",
        completion: .file())
    var socket: String?

    @OptionGroup var output: OutputOptions

    /// Sends a call to the server.
    func send(_ call: ControlClient.Call) async throws(ControlError) -> Data {
        try await client().send(call)
    }

    /// The client for the socket these options name.
    func client() throws(ControlError) -> ControlClient {
        ControlClient(
            socketPath: try DefaultPlaces.controlSocket(
                option: socket, ProcessInfo.processInfo.environment,
                isRoot: SystemCalls.effectiveUser == 0))
    }
}

/// Reads a file argument; `-` is standard input, and a pipe is as good as a file.
enum InputFile {
    static func text(_ path: String) throws(ControlError) -> String {
        let data: Data
        do {
            data = try bytes(path)
        } catch let error as ControlError {
            throw error
        } catch {
            throw ControlError(
                .systemError, code: "file-unreadable", status: 400,
                detail: "cannot read file '\(path)': \(reason(error))")
        }
        guard let text = String(data: data, encoding: .utf8) else {
            throw .invalidArgument(what: "file '\(path)'", detail: "it is not UTF-8 text")
        }
        return text
    }

    /// More than any document that is accepted.
    ///
    /// A device such as /dev/zero never ends.
    private static let bytesMax = 16 << 20

    private static func bytes(_ path: String) throws -> Data {
        guard path != "-" else { return try read(.standardInput, path) }
        let descriptor = try SystemCalls.open(path, flags: O_RDONLY)
        return try read(FileHandle(fileDescriptor: descriptor.raw), path)
    }

    private static func read(_ file: FileHandle, _ path: String) throws -> Data {
        var found = Data()
        while let more = try file.read(upToCount: 1 << 20), !more.isEmpty {
            found.append(more)
            guard found.count <= bytesMax else {
                throw ControlError.invalidArgument(
                    what: "file '\(path)'", detail: "it is longer than \(bytesMax >> 20) MiB")
            }
        }
        return found
    }

    private static func reason(_ error: any Error) -> String {
        if let failure = error as? SystemCalls.Failure {
            return SystemCalls.errorText(failure.number)
        }
        let underlying = (error as NSError).userInfo[NSUnderlyingErrorKey] as? NSError
        if let underlying, underlying.domain == NSPOSIXErrorDomain {
            return SystemCalls.errorText(Int32(underlying.code))
        }
        return error.localizedDescription
    }
}

extension ControlClient.Call {
    /// A call with a JSON body.
    init(_ method: String, _ path: [String], json body: some Encodable) throws(ControlError) {
        self.init(method)
        self.path = path
        do {
            self.body = try ControlJSON.encode(body)
        } catch {
            throw .internalError("the request cannot be written: \(error)")
        }
    }

    /// The call with `job` in its query, when given.
    func forJob(_ id: String?) -> ControlClient.Call {
        var call = self
        if let id { call.query.append(("job", id)) }
        return call
    }
}
