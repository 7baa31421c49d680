@testable import NBDServer
import ServerInterface
import Testing

/// Who may have an export of another server beside whom.
@Suite struct UpstreamRegistryTests {
    private typealias Use = UpstreamRegistry.Use

    private static func number(
        _ registry: UpstreamRegistry, _ place: String, _ use: UpstreamRegistry.Use
    ) -> Int32? {
        try? registry.reserve(place: place, name: place, for: use).get()
    }

    @Test("P5: one writer and many readers have an export, scratch has it alone")
    func uses() {
        let registry = UpstreamRegistry()
        let scratch = Use.scratch(job: "j")
        let reader = Self.number(registry, "a", .reading)
        #expect(reader != nil && Self.number(registry, "a", .reading) != nil)
        #expect(Self.number(registry, "a", scratch) == nil)
        let writer = Self.number(registry, "a", .writing)
        #expect(writer != nil && Self.number(registry, "a", .writing) == nil)
        let kept = Self.number(registry, "b", scratch)
        #expect(kept != nil)
        for use in [Use.reading, .writing, scratch, .scratch(job: "k")] {
            #expect(Self.number(registry, "b", use) == nil)
        }
        if let kept { registry.remove(kept) }
        #expect(Self.number(registry, "b", .writing) != nil)
    }

    @Test("P5: scratch is refused where its server turns out to be known by another name")
    func found() throws {
        let registry = UpstreamRegistry()
        let disk = try #require(Self.number(registry, "a", .writing))
        #expect(registry.note(disk, found: "socket 1 x") == nil)
        // Two disks may be two names of one, as before.
        let other = try #require(Self.number(registry, "b", .writing))
        #expect(registry.note(other, found: "socket 1 x") == nil)
        let scratch = try #require(Self.number(registry, "c", .scratch(job: "j")))
        #expect(registry.note(scratch, found: "socket 1 x") != nil)
        #expect(registry.note(scratch, found: "socket 1 y") == nil)
        let late = try #require(Self.number(registry, "d", .reading))
        #expect(registry.note(late, found: "socket 1 y")?.use == .scratch(job: "j"))
    }

    @Test("P5: scratch is refused that any layer of a disk's image is, or its data")
    func layers() throws {
        func image(_ name: String, snapshot: String? = nil) throws -> ImagePlace {
            var image = try #require(RBDImage(name: name))
            image.snapshot = snapshot
            return .rbd(image)
        }
        var top = ImageLayer(.qcow2, .file(path: "/top"))
        top.dataPlace = try image("rbd/data")
        let disk = ImageConfiguration(layers: [
            top, ImageLayer(.raw, try image("rbd/base", snapshot: "one")),
        ])
        for use in [Use.writing, .reading] {
            let registry = UpstreamRegistry()
            let scratch = Use.scratch(job: "j")
            func reserve(_ name: String, _ image: ImageConfiguration, _ use: Use) -> Int32? {
                try? registry.reserve(
                    place: name, images: image.allPlaces, name: name, for: use
                ).get()
            }
            func raw(_ name: String) throws -> ImageConfiguration {
                ImageConfiguration(layers: [ImageLayer(.raw, try image(name))])
            }
            let number = try #require(reserve("/top", disk, use))
            for name in ["rbd/base", "rbd/data"] {
                #expect(reserve("rbd:" + name, try raw(name), scratch) == nil, "\(name)")
                // Disks may share a layer, as before.
                #expect(reserve(name, try raw(name), .reading) != nil)
            }
            #expect(reserve("rbd:rbd/other", try raw("rbd/other"), scratch) != nil)
            registry.remove(number)
            let later = UpstreamRegistry()
            let base = try raw("rbd/base")
            #expect(
                (try? later.reserve(place: "a", images: base.allPlaces, name: "a", for: scratch)
                    .get())
                    != nil)
            #expect(
                (try? later.reserve(place: "b", images: disk.allPlaces, name: "b", for: use).get())
                    == nil)
        }
    }

    @Test(
        "P5: images of one name are two where their clusters' monitors are named, and none is of both"
    )
    func clusters() throws {
        func image(_ hosts: [String], _ port: UInt16 = 6789) throws -> ImageConfiguration {
            var rbd = try #require(RBDImage(name: "rbd/disk"))
            rbd.hosts = hosts.map { StorageHost(name: $0, port: port) }
            return ImageConfiguration(layers: [ImageLayer(.raw, .rbd(rbd))])
        }
        let one = try image(["mon-a", "mon-b"])
        for (other, isOther) in [
            (try image(["mon-c", "mon-d"]), true), (try image(["mon-b", "mon-a"]), false),
            (try image(["MON-B"], 3300), false), (try image([]), false),
        ] {
            for use in [Use.writing, .scratch(job: "j")] {
                let registry = UpstreamRegistry()
                func reserve(_ image: ImageConfiguration, _ use: Use) -> Int32? {
                    try? registry.reserve(
                        place: "rbd:rbd/disk", images: image.allPlaces, name: "a", for: use
                    ).get()
                }
                let number = try #require(reserve(one, .writing))
                #expect((reserve(other, use) != nil) == isOther, "\(other)")
                #expect(registry.isElsewhere(number, other.allPlaces) == isOther)
            }
        }
    }

    @Test("P5: a disk that is let go of is nobody's scratch until its program has ended")
    func letGo() throws {
        let registry = UpstreamRegistry()
        let number = try #require(Self.number(registry, "a", .writing))
        registry.letGo(number)
        // The next program waits for the last one by itself.
        let next = try #require(Self.number(registry, "a", .writing))
        registry.remove(next)
        #expect(Self.number(registry, "a", .scratch(job: "j")) == nil)
        registry.remove(number)
        #expect(Self.number(registry, "a", .scratch(job: "j")) != nil)
    }
}
