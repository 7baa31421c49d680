/// Bounds on what one peer may ask for, each with its reason.
package enum ProtocolLimits {
    /// Longest name, query or description in bytes of UTF-8; the specification's own bound.
    package static let stringBytesMax = 4096

    /// Longest payload of INFO, GO, LIST_META_CONTEXT or SET_META_CONTEXT that is parsed, in bytes.
    ///
    /// Room for a name of full length and hundreds of ordinary queries; a receive buffer of
    /// `optionHeaderBytes` more holds every option the handshake has to see whole.
    package static let optionPayloadBytesMax = 65_536

    /// Longest option payload that is read and thrown away, in bytes.
    ///
    /// Beyond it the connection ends: a peer must not make the server read 4 GiB of nothing
    /// (CVE-2017-15119).
    package static let optionSkipBytesMax: UInt32 = 33_554_432

    /// Size of the header in front of every option, in bytes.
    package static let optionHeaderBytes = 16

    /// Options answered on one connection before an export has to be chosen.
    ///
    /// The usual client sends three to six.
    package static let optionsMax = 32

    /// Further options granted for each export that LIST showed.
    ///
    /// A client that lists may ask for the details of every export on the same connection.
    package static let optionsPerListedExport = 32

    /// Upper bound of all options on one connection, however many exports are listed.
    package static let optionsWithListMax = 8192

    /// Queries in one LIST_META_CONTEXT or SET_META_CONTEXT.
    ///
    /// A machine has a few dozen checkpoints at most; more than this is not a backup client.
    package static let queriesMax = 256

    /// Contexts of one export that can be selected: the first ones.
    ///
    /// As many as can be asked for at once, so that a set of them has a fixed size.
    package static let contextsMax = queriesMax

    /// Largest payload announced to clients that ask, in bytes.
    ///
    /// What every client may use without negotiation.
    package static let advertisedPayloadBytes: UInt32 = 33_554_432

    /// Largest READ or WRITE that is carried out, in bytes.
    ///
    /// fio, libnbd and nbd-tester-client send up to 64 MiB and ignore what is announced.
    package static let acceptedPayloadBytesMax: UInt64 = 67_108_864

    /// Largest payload of a command that has none, or a wrong one, that is read and thrown away so
    /// that the connection stays, in bytes.
    ///
    /// The specification asks for as much as a payload may have, and for hanging up beyond.
    package static let strayPayloadBytesMax: UInt64 = acceptedPayloadBytesMax

    /// Largest WRITE payload that is read and thrown away so that the connection stays, in bytes.
    package static let skippedPayloadBytesMax: UInt64 = 2 * acceptedPayloadBytesMax

    /// Longest text in an error chunk, in bytes; longer ones are cut between characters.
    package static let errorTextBytesMax = 256
}
