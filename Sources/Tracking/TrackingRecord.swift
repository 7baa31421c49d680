/// What tells a disk's source from another one.
package struct SourceIdentity: Sendable, Hashable {
    package var path: String
    package var sizeBytes: UInt64
    /// Of a regular file; zero for a device, which its path identifies.
    package var inode: UInt64
    /// When the file was last changed, in nanoseconds.
    ///
    /// Compared after a clean stop only. Zero for a device.
    package var changedNanoseconds: UInt64

    package init(path: String, sizeBytes: UInt64, inode: UInt64, changedNanoseconds: UInt64) {
        self.path = path
        self.sizeBytes = sizeBytes
        self.inode = inode
        self.changedNanoseconds = changedNanoseconds
    }
}

/// The one small file that says what a disk's other tracking files mean.
///
/// Text, a fact a line, the last line a checksum of those before: a torn or altered record is told
/// apart from a whole one.
package struct TrackingRecord: Sendable, Hashable {
    package var source: SourceIdentity
    package var granularityBytes: UInt32
    /// The boot during which the record was written.
    package var bootID: String
    /// The session that wrote it; empty in records of the first form, which had none.
    package var session: String
    /// What was noted on the source when the session began; empty: nothing.
    package var mark: String
    /// The server has stopped in good order: the bits are exact, the source unchanged since.
    package var isClean: Bool
    package var chain: LayerChain

    private static let version: UInt64 = 2
    private static let title = "nbdpull-tracking \(version)"
    /// Of records without session and mark.
    private static let oldTitle = "nbdpull-tracking 1"
    /// A larger file is not ours, and no larger one is written, in bytes: 100,000 checkpoints.
    package static let bytesMax = 8 << 20
    /// Sizes that can be: those of disks that are served.
    static let sizeBytesMax: UInt64 = 1 << 62

    package init(
        source: SourceIdentity, granularityBytes: UInt32, bootID: String, isClean: Bool,
        chain: LayerChain, session: String = "", mark: String = ""
    ) {
        self.session = session
        self.mark = mark
        self.source = source
        self.granularityBytes = granularityBytes
        self.bootID = bootID
        self.isClean = isClean
        self.chain = chain
    }

    package func encode() -> [UInt8] {
        var lines = [
            Self.title, "path \(Self.escaped(source.path))",
            "size \(source.sizeBytes)", "inode \(source.inode)",
            "changed \(source.changedNanoseconds)", "granularity \(granularityBytes)",
            "boot \(bootID)", "clean \(isClean ? 1 : 0)", "next \(chain.nextSerial)",
            "session \(session)", "mark \(Self.escaped(mark))",
        ]
        for layer in chain.layers {
            lines.append("layer \(layer.serial) \(layer.checkpoint ?? "")")
        }
        let body = Array((lines.joined(separator: "\n") + "\n").utf8)
        return body + Array("crc \(Zlib.crc32(body.span))\n".utf8)
    }

    /// The version of a record that a later version of the program wrote; nil for every other.
    package static func newerVersion(_ bytes: [UInt8]) -> UInt64? {
        let line = bytes.prefix(64).prefix { $0 != UInt8(ascii: "\n") }
        guard line.count < min(bytes.count, 64),
            let text = value("nbdpull-tracking", String(decoding: line, as: UTF8.self)),
            let version = UInt64(text), version > Self.version
        else { return nil }
        return version
    }

    /// Reads a record of this form or the first; nil when it is torn, altered or of another form,
    /// or has numbers that no disk has.
    package static func decode(_ bytes: [UInt8]) -> TrackingRecord? {
        guard let lines = checkedLines(bytes), let title = lines.first else { return nil }
        let isOld = title == oldTitle
        let head = isOld ? 9 : 11
        guard isOld || title == Self.title, lines.count > head,
            let path = value("path", lines[1]),
            let size = value("size", lines[2]).flatMap({ UInt64($0) }), size <= sizeBytesMax,
            let inode = value("inode", lines[3]).flatMap({ UInt64($0) }),
            let changed = value("changed", lines[4]).flatMap({ UInt64($0) }),
            let granularity = value("granularity", lines[5]).flatMap({ UInt32($0) }),
            granularity.nonzeroBitCount == 1,
            let boot = value("boot", lines[6]), let clean = value("clean", lines[7]),
            let next = value("next", lines[8]).flatMap({ UInt64($0) }),
            let session = isOld ? "" : value("session", lines[9]),
            let mark = isOld ? "" : value("mark", lines[10]),
            let layers = layers(lines[head...]),
            let chain = LayerChain(layers: layers, nextSerial: next)
        else { return nil }
        return TrackingRecord(
            source: SourceIdentity(
                path: unescaped(path), sizeBytes: size, inode: inode, changedNanoseconds: changed),
            granularityBytes: granularity, bootID: boot, isClean: clean == "1", chain: chain,
            session: session, mark: unescaped(mark))
    }

    /// The lines before the checksum; nil when it does not fit them.
    private static func checkedLines(_ bytes: [UInt8]) -> [String]? {
        let text = String(decoding: bytes, as: UTF8.self)
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        guard text.hasSuffix("\n"), lines.count > 3, lines.removeLast().isEmpty,
            let sum = value("crc", lines.removeLast()).flatMap({ UInt32($0) })
        else { return nil }
        let body = Array((lines.joined(separator: "\n") + "\n").utf8)
        return sum == Zlib.crc32(body.span) ? lines : nil
    }

    /// A path may hold line ends; a line of the record may not.
    package static func escaped(_ path: String) -> String {
        var text = String.UnicodeScalarView()
        for scalar in path.unicodeScalars {
            switch scalar {
            case "\\": text.append(contentsOf: "\\\\".unicodeScalars)
            case "\n": text.append(contentsOf: "\\n".unicodeScalars)
            case "\r": text.append(contentsOf: "\\r".unicodeScalars)
            default: text.append(scalar)
            }
        }
        return String(text)
    }

    package static func unescaped(_ text: String) -> String {
        var path = String.UnicodeScalarView()
        var isEscaped = false
        for scalar in text.unicodeScalars {
            if isEscaped {
                path.append(scalar == "n" ? "\n" : scalar == "r" ? "\r" : scalar)
                isEscaped = false
            } else if scalar == "\\" {
                isEscaped = true
            } else {
                path.append(scalar)
            }
        }
        return String(path)
    }

    package static func value(_ key: String, _ line: String) -> String? {
        line.hasPrefix(key + " ") ? String(line.dropFirst(key.count + 1)) : nil
    }

    private static func layers(_ lines: ArraySlice<String>) -> [(
        serial: UInt64, checkpoint: String?
    )]? {
        var layers: [(serial: UInt64, checkpoint: String?)] = []
        for line in lines {
            let fields = line.split(separator: " ", omittingEmptySubsequences: false)
            guard fields.count == 3, fields[0] == "layer", let serial = UInt64(fields[1]) else {
                return nil
            }
            layers.append((serial, fields[2].isEmpty ? nil : String(fields[2])))
        }
        return layers
    }
}
