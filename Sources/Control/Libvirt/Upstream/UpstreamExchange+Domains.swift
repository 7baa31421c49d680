import LibvirtProtocol

/// Lists, XML and statistics of domains: libvirtd's, with what only this server knows.
extension UpstreamExchange {
    // MARK: Lists

    /// Libvirtd's domains by its own words, and those that only this server knows.
    ///
    /// Which of our domains have checkpoints is ours to say; of the others it is libvirtd's.
    func domainList() async -> Packet {
        var arguments = call.arguments
        let needsResults = ((try? arguments.int()) ?? 0) != 0
        let flags = (try? arguments.uint()) ?? 0
        let own = await context.domains()
        guard !own.isEmpty else { return await theirs() }
        do {
            let known = try await upstreamDomains(flags: 0)
            let checkpoints = flags & Self.checkpointFlags
            var listed = try await upstreamDomains(flags: flags & ~Self.checkpointFlags)
            if checkpoints != 0 {
                listed = UpstreamMerge.byCheckpoints(
                    listed, theirs: try await upstreamDomains(flags: flags),
                    ours: Dictionary(
                        own.map { (UUIDText.bytes($0.definition.uuid), $0.checkpointCount) }
                    ) { first, _ in first }, wantsSome: checkpoints != Self.noCheckpoint,
                    wantsNone: checkpoints != Self.hasCheckpoint)
            }
            let ownList = await ours(
                LibvirtCalls.reply {
                    $0.int(1)
                    $0.uint(flags)
                }.bytes)
            if ownList.error != nil { return ownList }
            let all = listed + UpstreamMerge.unknown(try Self.domains(ownList), to: known)
            return success {
                $0.domains(needsResults ? all : [])
                $0.uint(UInt32(clamping: all.count))
            }
        } catch let fault as UpstreamFault {
            return failure(fault.wire)
        } catch {
            return failure(connection.garbled("\(error)").wire)
        }
    }

    private static let hasCheckpoint = LibvirtCalls.ListFlag.hasCheckpoint
    private static let noCheckpoint = LibvirtCalls.ListFlag.noCheckpoint
    private static let checkpointFlags = hasCheckpoint | noCheckpoint

    private func upstreamDomains(flags: UInt32) async throws -> [WireDomain] {
        let arguments = LibvirtCalls.reply {
            $0.int(1)
            $0.uint(flags)
        }
        return try Self.domains(try await connection.call(.listAllDomains, arguments.bytes))
    }

    private static func domains(_ packet: Packet) throws(XDRError) -> [WireDomain] {
        var reader = XDRReader(packet.body)
        return try reader.domains()
    }

    // MARK: XML

    /// Libvirtd's XML of the machine as it is now; disks that it reaches through our live exports
    /// are shown to backup tools as ours.
    ///
    /// What is asked for to define the machine anew, or to move it, stays as libvirtd has it.
    func domainXML() async -> Packet {
        let theirs = await theirsElseOurs()
        var arguments = call.arguments
        guard theirs.error == nil, let named = try? arguments.domain(),
            let flags = try? arguments.uint(), flags & (Self.inactive | Self.migratable) == 0,
            let domain = await context.domain(uuid: UUIDText.text(named.uuid))
        else { return theirs }
        var reader = XDRReader(theirs.body)
        guard let xml = try? reader.string(), (try? reader.finish()) != nil else {
            return failure(connection.garbled("no XML").wire)
        }
        // What cannot be described anew is shown as it is: tools then find no disk of theirs.
        guard
            let text = try? await context.manager.backupToolXML(
                of: domain.name, machineXML: xml, places: context.places, showsSecrets: true)
        else { return theirs }
        return success { $0.string(text) }
    }

    private static let inactive: UInt32 = 1 << 1
    private static let migratable: UInt32 = 1 << 3

    // MARK: Statistics

    /// Libvirtd's figures, with sizes of our disks where it has none, and those of domains that
    /// only this server knows.
    func domainStats() async -> Packet {
        var arguments = call.arguments
        do {
            let asked = try arguments.domains()
            let groups = try arguments.uint()
            let flags = try arguments.uint()
            let own = await context.domains().map { UUIDText.bytes($0.definition.uuid) }
            guard asked.isEmpty || asked.contains(where: { own.contains($0.uuid) }) else {
                return await theirs()
            }
            let known = try await upstreamDomains(flags: 0)
            let (upstream, onlyOurs) = UpstreamMerge.split(asked, known: known, own: own)
            var records: [DomainRecord] = []
            if asked.isEmpty || !upstream.isEmpty {
                let theirs = await theirs(Self.stats(upstream, groups, flags))
                if theirs.error != nil { return theirs }
                records = try Self.records(theirs)
            }
            // What we have to say fills gaps; where we have nothing, there are gaps.
            let additions = await ours(Self.stats(asked.isEmpty ? [] : onlyOurs, groups, flags))
            var ownRecords = (try? Self.records(additions)) ?? []
            let both = records.map(\.domain).filter { own.contains($0.uuid) }
            if !both.isEmpty, !asked.isEmpty {
                let filling = await ours(Self.stats(both, groups, flags))
                ownRecords += (try? Self.records(filling)) ?? []
            }
            let merged = UpstreamMerge.records(records, filledFrom: ownRecords, known: known)
            let answer = success { writer in
                writer.count(merged.count)
                for record in merged {
                    writer.domain(record.domain)
                    writer.parameters(record.parameters)
                }
            }
            return answer.body.count <= context.replyBytesMax
                ? answer : failure(.replyTooLong)
        } catch let fault as UpstreamFault {
            return failure(fault.wire)
        } catch {
            return failure(connection.garbled("\(error)").wire)
        }
    }

    private static func stats(_ domains: [WireDomain], _ groups: UInt32, _ flags: UInt32) -> [UInt8]
    {
        LibvirtCalls.reply {
            $0.domains(domains)
            $0.uint(groups)
            $0.uint(flags)
        }.bytes
    }

    private static func records(_ packet: Packet) throws(XDRError) -> [DomainRecord] {
        guard packet.error == nil else { return [] }
        var reader = XDRReader(packet.body)
        var records: [DomainRecord] = []
        for _ in 0..<(try reader.count(limit: LibvirtLimits.domainsMax)) {
            records.append(
                DomainRecord(
                    domain: try reader.domain(),
                    parameters: try reader.parameters(limit: LibvirtLimits.statisticsMax)))
        }
        return records
    }
}
