/// The bounds of everything that a peer of the libvirt door can make the server hold or do (promise
/// P6).
package enum LibvirtLimits {
    /// The longest packet that is read, in bytes, its length field included: a string of the
    /// longest kind and what surrounds it.
    package static let packetBytesMax = (4 << 20) + (64 << 10)
    /// The same before a connection is opened: until then packets are short.
    package static let greetingBytesMax = 64 << 10
    /// The longest string, in bytes; libvirt's own limit.
    package static let stringBytesMax = 4 << 20
    /// Most domains in one array; libvirt's own limit is 16384.
    package static let domainsMax = 16_384
    /// Most checkpoints in one array; libvirt's own limit.
    package static let checkpointsMax = 16_384
    /// Most typed parameters in one array.
    package static let parametersMax = 16_384
    /// The longest reply, in bytes of its body: libvirt's own limit of a message.
    package static let replyBytesMax = 32 << 20
    /// Most figures of one domain in a reply; libvirt's own limit.
    package static let statisticsMax = 262_144
    /// Most mount points that one freeze or thaw may name; libvirt's own limit.
    package static let mountPointsMax = 256
    /// Calls of one connection that are begun and not answered; then it is not read until one is.
    package static let callsPerConnection = 64
    /// Bytes of their arguments; the same follows.
    package static let callBytesPerConnection = 8 << 20
    /// Event registrations of one connection: every kind of event for every one of some domains.
    package static let registrationsMax = 1024
    /// Bytes of replies and events that a peer has not taken, above which no call of it is read.
    package static let unsentBytesToRead = 1 << 20
    /// The same for an event, which is not the answer to a request: above it, the connection ends.
    package static let unsentBytesForEvents = 4 << 20
    /// The same for a reply: above it, the connection ends as well.
    package static let unsentBytesMax = 64 << 20
    /// Connections at once.
    package static let connectionsMax = 256
    /// Of these, of one user; somebody else's calls always find room.
    package static let connectionsPerUser = 192
    /// Seconds from the first byte, or from the accept, until the connection is opened.
    package static let greetingSeconds = 10
    /// A connection that is not opened after this time makes way for another when there is no room,
    /// in milliseconds.
    package static let evictionMilliseconds = 20
    /// Seconds for the rest of a packet that has begun.
    package static let packetSeconds = 30
    /// Seconds for a peer to take some of what is sent to it.
    package static let unsentSeconds = 60
    /// Seconds of silence until a peer that understands it is sent a PING.
    package static let keepaliveSeconds = 5
    /// PINGs without a byte in reply until the connection is closed.
    package static let keepaliveCount = 5
    /// Seconds for the calls in progress when the server stops.
    package static let farewellSeconds = 10
}
