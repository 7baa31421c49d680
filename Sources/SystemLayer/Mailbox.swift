import Synchronization

/// A queue into one ring: any thread posts, the ring's thread takes everything at once.
package final class Mailbox<Message: Sendable>: Sendable {
    private let queue = Mutex<[Message]>([])
    /// Nil where nobody sleeps on it.
    private let event: EventDescriptor?

    /// The descriptor that becomes readable when a message is there, or -1.
    package let raw: Int32

    package init() throws(SystemFault) {
        let event = try EventDescriptor()
        raw = event.raw
        self.event = consume event
    }

    /// A mailbox whose owner looks for itself: it wakes nobody, and has no descriptor.
    package init(unwatched: ()) {
        event = nil
        raw = -1
    }

    /// Whether there is no message.
    package var isEmpty: Bool { queue.withLock(\.isEmpty) }

    /// Puts a message in and wakes the ring.
    package func post(_ message: Message) {
        let wasEmpty = queue.withLock { queue in
            queue.append(message)
            return queue.count == 1
        }
        if wasEmpty { event?.signal() }
    }

    /// Takes every message, oldest first.
    package func takeAll() -> [Message] {
        event?.consume()
        return queue.withLock { queue in
            let messages = queue
            queue.removeAll(keepingCapacity: true)
            return messages
        }
    }

    /// Takes at most so many messages, oldest first, out of a mailbox that is unwatched.
    package func take(atMost count: Int) -> [Message] {
        queue.withLock { queue in
            let messages = Array(queue.prefix(count))
            queue.removeFirst(messages.count)
            return messages
        }
    }

    /// Waits until a message is there; for threads without a ring.
    package func wait() { _ = event?.wait(milliseconds: -1) }
}
