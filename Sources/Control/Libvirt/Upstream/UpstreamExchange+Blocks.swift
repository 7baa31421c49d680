import LibvirtProtocol

/// Block jobs: a disk may have one of libvirtd's (a copy that moves it here or away) and one of
/// ours (a backup).
extension UpstreamExchange {
    /// Libvirtd's job, which changes where the machine's disk lies; where it has none, ours.
    func blockJobInfo() async -> Packet {
        let theirs = await theirs()
        guard await isOnOurDomain else { return theirs }
        if theirs.error == nil {
            var reader = XDRReader(theirs.body)
            if (try? reader.int()) != 0 { return theirs }
        }
        let own = await ours()
        return own.error == nil ? own : theirs
    }

    /// Libvirtd's job, if it has one; else ours, which cannot be pivoted to.
    func blockJobAbort() async -> Packet {
        var arguments = call.arguments
        _ = try? arguments.domain()
        _ = try? arguments.string()
        let pivots = ((try? arguments.uint()) ?? 0) & Self.pivot != 0
        let theirs = await theirs(seconds: nil)
        guard !pivots, theirs.error != nil, await isOnOurDomain else { return theirs }
        let own = await ours()
        return own.error == nil ? own : theirs
    }

    private static let pivot: UInt32 = 1 << 1

    /// A threshold on a place in the scratch of one of our jobs is ours, any other libvirtd's.
    func blockThreshold() async -> Packet {
        var arguments = call.arguments
        _ = try? arguments.domain()
        let disk = (try? arguments.string()) ?? ""
        if disk.hasSuffix("]"), await isOnOurDomain {
            let own = await ours()
            if own.error == nil { return own }
        }
        return await theirs(seconds: nil)
    }
}
