import Synchronization

/// A queue into one ring: any thread posts, the ring's thread takes everything at once.
package final class Mailbox<Message: Sendable>: Sendable {
    private let queue = Mutex<[Message]>([])
    private let event: EventDescriptor

    package init() throws(SystemFault) { event = try EventDescriptor() }

    /// The descriptor that becomes readable when a message is there.
    package var raw: Int32 { event.raw }

    /// Puts a message in and wakes the ring.
    package func post(_ message: Message) {
        let wasEmpty = queue.withLock { queue in
            queue.append(message)
            return queue.count == 1
        }
        if wasEmpty { event.signal() }
    }

    /// Takes every message, oldest first.
    package func takeAll() -> [Message] {
        event.consume()
        return queue.withLock { queue in
            let messages = queue
            queue.removeAll(keepingCapacity: true)
            return messages
        }
    }

    /// Waits until a message is there; for threads without a ring.
    package func wait() { _ = event.wait(milliseconds: -1) }
}
