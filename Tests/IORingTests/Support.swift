import IORing

extension BufferArena {
    /// Fills a range with bytes that depend on their place.
    mutating func fill(_ offset: Int, count: Int, salt: Int) {
        var bytes = mutableBytes(offset, count: count)
        for index in 0..<count {
            bytes.storeBytes(
                of: UInt8(truncatingIfNeeded: index * 7 + salt), toByteOffset: index,
                as: UInt8.self)
        }
    }

    func contents(_ offset: Int, count: Int) -> [UInt8] {
        let span = bytes(offset, count: count)
        return (0..<count).map { span[$0] }
    }
}

extension Ring {
    /// Submits and waits until `count` operations are complete: their results by tag.
    mutating func results(_ count: Int) -> [UInt64: Int32] {
        var results: [UInt64: Int32] = [:]
        var completions: [Completion] = []
        while results.count < count {
            submit(waiting: true)
            drain(into: &completions)
            for completion in completions { results[completion.tag] = completion.result }
        }
        return results
    }
}
