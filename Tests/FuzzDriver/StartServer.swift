import Dispatch
import FuzzEntries
import Synchronization

/// Starts the server and waits for it: libFuzzer knows no `async`.
func startServer() -> FuzzServer {
    let started = DispatchSemaphore(value: 0)
    let place = Place()
    Task.detached {
        do {
            let server = try await FuzzServer.start()
            place.server.withLock { $0 = server }
        } catch {
            print("the server does not start: \(error)")
        }
        started.signal()
    }
    started.wait()
    guard let server = place.server.withLock({ $0 }) else {
        preconditionFailure("no server to feed")
    }
    return server
}

private final class Place: Sendable {
    let server = Mutex<FuzzServer?>(nil)
}
