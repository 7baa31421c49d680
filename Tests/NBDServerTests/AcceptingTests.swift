import Foundation
import Glibc
import Testing

@testable import NBDServer
@testable import ServerInterface

/// A listening socket of the test's own.
private func listening(_ path: String) -> Int32 {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: path.utf8) }
    let descriptor = socket(
        AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue), 0)
    let bound = unsafe withUnsafePointer(to: &address) { pointer in
        unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            unsafe bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
    }
    #expect(bound == 0 && listen(descriptor, 16) == 0)
    return descriptor
}

/// Whether a server greets on a socket within a few seconds.
private func isGreeted(_ path: String, milliseconds: Int32) -> Bool {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: path.utf8) }
    let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    defer { close(descriptor) }
    let connected = unsafe withUnsafePointer(to: &address) { pointer in
        unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            unsafe connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
    }
    guard connected == 0 else { return false }
    var request = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    guard unsafe poll(&request, 1, milliseconds) == 1 else { return false }
    // A hang-up is no greeting.
    var byte: UInt8 = 0
    return unsafe read(descriptor, &byte, 1) == 1
}

@Suite struct AcceptingTests {
    @Test("P6: a socket that could not be watched for a moment is watched again")
    func watchedAgain() async throws {
        let directory =
            FileManager.default.temporaryDirectory.path
            + "/np-\(UInt32.random(in: 0...UInt32.max))"
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: false)
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let server = try NBDServer(configuration: ServerConfiguration(rings: 1))
        let descriptor = listening(directory + "/first")
        _ = try await server.adoptLive(descriptor: descriptor, security: .plaintext)
        #expect(isGreeted(directory + "/first", milliseconds: 5000))
        // The number stands for something that can neither be watched nor accepted from.
        let path = unsafe open("/", O_RDONLY | __O_PATH)
        #expect(dup2(path, descriptor) == descriptor)
        #expect(!isGreeted(directory + "/first", milliseconds: 500))
        // And for a good socket again.
        let second = listening(directory + "/second")
        #expect(dup2(second, descriptor) == descriptor)
        #expect(isGreeted(directory + "/second", milliseconds: 5000))
        close(second)
        close(path)
        await server.shutdown()
    }
}
