import LibvirtProtocol
import Testing

/// What was captured from libvirt's own programs is what the table says.
@Suite struct SampleTests {
    @Test("a captured body has the shape that the table gives it", arguments: Sample.all)
    func shape(sample: Sample) throws {
        let entry = try #require(
            ProcedureTable.entry(Procedure(rawValue: sample.procedure)),
            "\(sample.procedure) is not served")
        switch sample.kind {
        case .call: #expect(try XDRShape.check(entry.arguments, sample.body) == 0)
        case .reply: #expect(try XDRShape.check(entry.results, sample.body) == 0)
        case .error: _ = try WireError(body: sample.body)
        }
    }

    @Test("a captured body that ends early is refused", arguments: Sample.all)
    func cut(sample: Sample) throws {
        guard let entry = ProcedureTable.entry(Procedure(rawValue: sample.procedure)),
            sample.kind != .error
        else { return }
        let shapes = sample.kind == .call ? entry.arguments : entry.results
        for count in 0..<sample.body.count {
            #expect(throws: XDRError.self, "\(count) of \(sample.body.count)") {
                try XDRShape.check(shapes, Array(sample.body.prefix(count)))
            }
        }
    }

    @Test("a captured error comes back byte for byte")
    func error() throws {
        let sample = try #require(Sample.all.first { $0.kind == .error })
        let error = try WireError(body: sample.body)
        #expect(error.code == 9 && error.domain == 20)
        #expect(error.message == "operation failed: domain moment cp2 already exists")
        #expect(error.form == "operation failed: %s")
        #expect(error.detail == "domain moment cp2 already exists")
        let made = WireError(
            code: 9, domain: 20, prefix: "operation failed: ",
            detail: "domain moment cp2 already exists")
        #expect(made.body == sample.body)
    }

    @Test("values that were captured are read, and written byte for byte")
    func values() throws {
        func body(_ procedure: Int32, _ kind: Sample.Kind) throws -> [UInt8] {
            try #require(
                Sample.all.first { $0.procedure == procedure && $0.kind == kind }
            ).body
        }
        let domain = WireDomain(
            name: "anchor",
            uuid: Sample.bytes("11111111222243338444555555555555"), id: 3)
        var reader = XDRReader(try body(23, .reply))
        #expect(try reader.domain() == domain)
        var writer = XDRWriter()
        writer.domain(domain)
        #expect(writer.bytes == (try body(23, .reply)))

        writer = XDRWriter()
        writer.checkpoints([WireCheckpoint(name: "cp1", domain: domain)])
        writer.int(1)
        #expect(writer.bytes == (try body(413, .reply)))

        writer = XDRWriter()
        writer.int(2)
        writer.parameters([
            TypedParameter("operation", .int(9)), TypedParameter("time_elapsed", .uhyper(52)),
            TypedParameter("disk_temp_used", .uhyper(0)),
            TypedParameter("disk_temp_total", .uhyper(1 << 30)),
        ])
        #expect(writer.bytes == (try body(298, .reply)))

        writer = XDRWriter()
        for value in [1, 5] as [Int32] { writer.int(value) }
        for value in [0, 65_536, 1 << 30] as [UInt64] { writer.uhyper(value) }
        #expect(writer.bytes == (try body(238, .reply)))
    }
}
