import LibvirtProtocol
import Testing

/// Events are messages of the kinds that were asked for.
@Suite struct LibvirtEventTests {
    private let domain = WireDomain(name: "vm", uuid: [UInt8](repeating: 9, count: 16), id: 4)

    private func body(_ write: (inout XDRWriter) -> Void) -> [UInt8] {
        var writer = XDRWriter()
        write(&writer)
        return writer.bytes
    }

    @Test(
        "what becomes of a domain is told with libvirt's numbers",
        arguments: [
            (.defined, 0, 0), (.changed, 0, 1), (.undefined, 1, 0), (.started, 2, 0),
            (.stopped, 5, 0),
        ] as [(LibvirtEvent.Lifecycle, Int32, Int32)])
    func lifecycle(lifecycle: LibvirtEvent.Lifecycle, event: Int32, detail: Int32) {
        let told = LibvirtEvent.lifecycle(domain, lifecycle)
        let message = told.message(kind: 0, callback: 12)
        #expect(message?.header == PacketHeader(procedure: 318, type: .message))
        #expect(
            message?.body
                == body {
                    $0.int(12)
                    $0.domain(domain)
                    $0.int(event)
                    $0.int(detail)
                })
        let legacy = told.message(kind: 0, callback: nil)
        #expect(legacy?.header.procedure == 107)
        #expect(
            legacy?.body
                == body {
                    $0.domain(domain)
                    $0.int(event)
                    $0.int(detail)
                })
    }

    @Test("a block job is named by its path, or by its target, as was asked")
    func blockJob() {
        let event = LibvirtEvent.blockJob(domain, target: "vda", path: "/p", .canceled)
        for (kind, callback, procedure, name) in [
            (8, 1, 326, "/p"), (16, 1, 339, "vda"), (8, nil, 241, "/p"),
        ] as [(Int32, Int32?, Int32, String)] {
            let message = event.message(kind: kind, callback: callback)
            #expect(message?.header.procedure == procedure)
            #expect(
                message?.body
                    == body {
                        if let callback { $0.int(callback) }
                        $0.domain(domain)
                        $0.string(name)
                        $0.int(5)
                        $0.int(2)
                    })
        }
        #expect(event.message(kind: 16, callback: nil) == nil)
    }

    @Test("the end of a job and a threshold")
    func others() {
        let job = LibvirtEvent.jobCompleted(domain, [TypedParameter("operation", .int(9))])
        #expect(job.message(kind: 21, callback: 0)?.header.procedure == 363)
        let threshold = LibvirtEvent.blockThreshold(
            domain, device: "vda[3]", path: "/s", threshold: 5, excess: 2)
        let message = threshold.message(kind: 24, callback: 0)
        #expect(message?.header.procedure == 385)
        #expect(
            message?.body
                == body {
                    $0.int(0)
                    $0.domain(domain)
                    $0.string("vda[3]")
                    $0.optionalString("/s")
                    $0.uhyper(5)
                    $0.uhyper(2)
                })
    }

    @Test("nobody is told what they have not asked for", arguments: LibvirtEventKind.all)
    func kinds(kind: Int32) {
        let events: [(LibvirtEvent, Set<Int32>)] = [
            (.lifecycle(domain, .started), [0]),
            (.blockJob(domain, target: "vda", path: "/p", .failed), [8, 16]),
            (.jobCompleted(domain, []), [21]),
            (.blockThreshold(domain, device: "v", path: nil, threshold: 1, excess: 0), [24]),
        ]
        for (event, kinds) in events {
            #expect((event.message(kind: kind, callback: 1) != nil) == kinds.contains(kind))
        }
    }
}
