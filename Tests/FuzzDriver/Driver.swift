import FuzzEntries
import Glibc

/// What this run of the fuzzer feeds, by `NBDPULL_FUZZ_TARGET`.
let chosen: FuzzTarget = {
    // SAFETY: the text is copied before any other call.
    let name = unsafe getenv("NBDPULL_FUZZ_TARGET").map { unsafe String(cString: $0) } ?? ""
    guard let target = FuzzTarget(rawValue: name) else {
        print("NBDPULL_FUZZ_TARGET is one of \(FuzzTarget.allCases.map(\.rawValue))")
        exit(64)
    }
    return target
}()

/// The whole server, for the target that needs it.
let server: FuzzServer? = chosen == .server ? startServer() : nil

/// What libFuzzer calls with every input.
@c(LLVMFuzzerTestOneInput)
public func fuzzOneInput(_ data: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    // SAFETY: libFuzzer passes `count` bytes that live through the call.
    let bytes = unsafe Array(UnsafeBufferPointer(start: data, count: count))
    chosen.run(bytes, server: server)
    return 0
}
