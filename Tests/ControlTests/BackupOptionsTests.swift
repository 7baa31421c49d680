import Control
import Foundation
import ServerInterface
import Testing

@Suite struct BackupOptionsTests {
    private static func disk(_ target: String, readOnly: Bool = false, error: String? = nil)
        -> DiskView
    {
        var disk = DiskView(
            disk: target, source: "/img/\(target)", type: "file", device: "disk",
            readOnly: readOnly)
        disk.errorMessage = error
        return disk
    }

    private static func checkpoint(
        _ name: String, at second: Double, descendants: Int = 0, usable: [String: Bool]
    ) throws -> CheckpointView {
        let disks = usable.sorted { $0.key < $1.key }.map {
            #"{"disk":"\#($0.key)","checkpoint":"bitmap","bitmap":"\#(name)","usable":\#($0.value)}"#
        }.joined(separator: ",")
        return CheckpointView(
            name: name, domain: "vm1", parent: nil,
            creationTime: Date(timeIntervalSince1970: second), children: 0,
            descendants: descendants, current: false,
            disks: try ControlJSON.decode([CheckpointDiskView].self, from: Data("[\(disks)]".utf8)))
    }

    private static func facts(
        _ checkpoints: [CheckpointView] = [],
        disks: [DiskView] = [disk("vda"), disk("vdb"), disk("sda", readOnly: true)]
    ) throws -> BackupOptions.Facts {
        let domain = try ControlJSON.decode(
            DomainView.self,
            from: Data(
                #"{"domain":"vm1","uuid":"u1","disks":3,"failedDisks":0,"jobs":0}"#.utf8))
        return BackupOptions.Facts(
            domain: domain, disks: disks, checkpoints: checkpoints, socketDirectory: "/run/n",
            now: Date(timeIntervalSince1970: 1_800_000_000), tag: "t1")
    }

    private static let both = ["vda": true, "vdb": true]

    @Test("options stand for the XML that a person would write")
    func wholeRequest() throws {
        var options = BackupOptions()
        options.incremental = "sunday"
        options.checkpoint = "monday"
        options.endpoint = .tcp(host: "::1", port: 10809)
        options.requiresTLS = true
        options.disks = ["vdb", "sda"]
        options.scratchDirectory = "/s"
        let request = try options.request(try Self.facts())
        #expect(
            request.backupXML == """
                <domainbackup mode='pull'>
                  <incremental>sunday</incremental>
                  <server transport='tcp' name='::1' port='10809' tls='yes'/>
                  <disks>
                    <disk name='vdb' type='file'>
                      <scratch file='/s/u1-vdb.t1'/>
                    </disk>
                    <disk name='sda' type='file'>
                      <scratch file='/s/u1-sda.t1'/>
                    </disk>
                  </disks>
                </domainbackup>

                """)
        // Not the disks that this backup leaves out, and none that cannot have one.
        #expect(
            request.checkpointXML == """
                <domaincheckpoint>
                  <name>monday</name>
                  <disks>
                    <disk name='vdb'/>
                  </disks>
                </domaincheckpoint>

                """)
        #expect(request.notes.isEmpty)
        _ = try BackupRequest.parse(request.backupXML)
        _ = try CheckpointRequest.parse(try #require(request.checkpointXML))
    }

    @Test("without options it is a full backup of all disks beside the control socket")
    func defaults() throws {
        let request = try BackupOptions().request(try Self.facts())
        #expect(
            request.backupXML == """
                <domainbackup mode='pull'>
                  <server transport='unix' socket='/run/n/backup-t1.sock'/>
                </domainbackup>

                """)
        #expect(request.checkpointXML == nil)
        let parsed = try BackupRequest.parse(request.backupXML)
        #expect(parsed.endpoint == .unix(path: "/run/n/backup-t1.sock", mode: 0o600))
    }

    @Test("P3: auto starts from the newest checkpoint that all disks can start from")
    func newest() throws {
        var options = BackupOptions()
        options.incremental = BackupOptions.automatic
        let list = [
            try Self.checkpoint("c3", at: 9, usable: ["vda": true, "vdb": false]),
            try Self.checkpoint("c1", at: 5, descendants: 2, usable: Self.both),
            try Self.checkpoint("c2", at: 5, descendants: 1, usable: Self.both),
        ]
        let request = try options.request(try Self.facts(list))
        #expect(request.backupXML.contains("<incremental>c2</incremental>"))
        #expect(!request.backupXML.contains("<disks>"))
        #expect(request.notes == ["incremental backup since checkpoint 'c2'"])
        options.disks = ["vda"]
        #expect(try options.request(try Self.facts(list)).notes[0].contains("'c3'"))
    }

    @Test("P3: auto backs up in full what has no checkpoint, and says so")
    func mixed() throws {
        var options = BackupOptions()
        options.incremental = BackupOptions.automatic
        let request = try options.request(
            try Self.facts([try Self.checkpoint("c1", at: 5, usable: ["vda": true])]))
        #expect(
            request.backupXML.contains(
                """
                    <disk name='vda' type='file' backupmode='incremental' incremental='c1'/>
                    <disk name='vdb' type='file' backupmode='full'/>
                """))
        #expect(!request.backupXML.contains("<incremental>"))
        #expect(request.notes.count == 2 && request.notes[1].contains("'vdb' is backed up in full"))
        let parsed = try BackupRequest.parse(request.backupXML)
        #expect(parsed.disks?.map(\.incremental) == ["c1", nil])
        for list in [[], [try Self.checkpoint("c1", at: 5, usable: ["vda": false])]] {
            let full = try options.request(try Self.facts(list))
            #expect(!full.backupXML.contains("incremental"))
            #expect(full.notes.count == 1 && full.notes[0].hasPrefix("full backup: "))
        }
    }

    @Test("auto makes a name from the time that is not taken")
    func names() throws {
        var options = BackupOptions()
        options.checkpoint = BackupOptions.automatic
        let first = try options.request(try Self.facts())
        #expect(first.checkpointXML?.contains("<name>20270115T080000Z</name>") == true)
        let second = try options.request(
            try Self.facts([try Self.checkpoint("20270115T080000Z", at: 1, usable: [:])]))
        #expect(second.checkpointXML?.contains("<name>20270115T080000Z-2</name>") == true)
    }

    @Test("what cannot be meant is refused with its name")
    func refusals() throws {
        func refusal(_ facts: BackupOptions.Facts, _ change: (inout BackupOptions) -> Void)
            -> String
        {
            var options = BackupOptions()
            change(&options)
            do throws(ControlError) {
                return "accepted: \(try options.request(facts))"
            } catch {
                return error.message
            }
        }
        let facts = try Self.facts()
        #expect(
            refusal(facts) { $0.disks = ["vdc"] }.contains(
                "--disk 'vdc': domain 'vm1' has none of that name, only vda, vdb, sda"))
        #expect(refusal(facts) { $0.disks = ["vda", "vda"] }.contains("named twice"))
        #expect(refusal(facts) { $0.incremental = "" }.contains("--incremental: the name is empty"))
        #expect(
            refusal(facts) {
                $0.disks = ["sda"]
                $0.checkpoint = "c"
            }.contains("read-only disks have none"))
        let failed = try Self.facts(disks: [Self.disk("vda"), Self.disk("vdb", error: "gone")])
        #expect(
            refusal(failed) { $0.scratchDirectory = "/s" }.contains(
                "disk 'vdb' of domain 'vm1': it is not served (gone)"))
    }
}

@Suite struct ListTextTests {
    @Test("sizes and times are as a person reads them")
    func units() {
        let sizes: [(UInt64, String)] = [
            (0, "0 B"), (999, "999 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"),
            (1_048_575, "1 MiB"), (150 << 20, "150 MiB"), (.max, "16 EiB"),
            ((20 << 30) + (100 << 20), "20.1 GiB"),
        ]
        for (bytes, text) in sizes { #expect(ConsoleText.size(bytes) == text) }
        let times: [(Double, String)] = [
            (0.4, "0 s"), (59, "59 s"), (185, "3:05 min"), (7380, "2:03 h"), (.infinity, "-"),
        ]
        for (seconds, text) in times { #expect(ConsoleText.duration(seconds) == text) }
    }

    private static func disk(_ path: String) -> DiskView {
        var disk = DiskView(
            disk: "vda", source: path, type: "file", device: "disk", readOnly: false)
        disk.size = 20 << 30
        disk.dirtyBytes = 3 << 19
        disk.clients = 1
        disk.uri = "nbd+unix:///vm1/vda?socket=/run/nbdpull/live.sock"
        disk.vhostSocket = "/run/nbdpull/vhost/vm1-vda.sock"
        disk.checkpoints = (1...30).map { "checkpoint-\($0)" }
        return disk
    }

    @Test("domblklist --details keeps within 100 columns, and shows all of a long path")
    func disks() {
        let short = ConsoleText.disks([Self.disk("/srv/vm1.img")], details: true, quiet: false)
        #expect(
            short.hasPrefix(
                """
                 Type   Device   Target   Source         Size     Dirty     Client
                -----------------------------------------------------------------------
                 file   disk     vda      /srv/vm1.img   20 GiB   1.5 MiB   connected
                   URI:           nbd+unix:///vm1/vda?socket=/run/nbdpull/live.sock
                   Vhost Socket:  /run/nbdpull/vhost/vm1-vda.sock
                   Checkpoints:   checkpoint-1, checkpoint-2,
                """))
        let path = "/srv/" + String(repeating: "d", count: 80)
        let long = ConsoleText.disks([Self.disk(path)], details: true, quiet: true)
        #expect(long.hasPrefix(" file   disk   vda   20 GiB   1.5 MiB   connected\n"))
        #expect(long.contains("   Source:        \(path)\n"))
        for text in [short, long] {
            for line in text.split(separator: "\n") {
                #expect(line.count <= 100 || line.contains(path), "\(line)")
            }
            #expect(text.contains("checkpoint-30\n"))
        }
    }

    @Test("backup-list keeps within 100 columns and starts each job with its id")
    func jobs() throws {
        let exports = (0..<40).map {
            #"{"disk":"vd\#($0)","name":"vd\#($0)","uri":"","bitmap":null}"#
        }.joined(separator: ",")
        let view = """
            {"id":"\(UUID().uuidString.lowercased())","domain":"\(String(repeating: "m", count: 60))",
            "state":"broken","begun":"1970-01-01T00:00:00.000Z","exports":[\(exports)],"tls":false}
            """
        var job = try ControlJSON.decode(JobView.self, from: Data(view.utf8))
        job.errorMessage = "scratch '/s' of disk 'vda': No space left on device"
        let text = ConsoleText.jobs([job], quiet: true)
        #expect(text.hasPrefix(" \(job.id)   broken   1970-01-01 00:00:00 +0000   40 disks\n"))
        for part in ["vd39", "No space left on device", "1970-01-01", job.domain] {
            #expect(text.contains(part))
        }
        for line in text.split(separator: "\n") { #expect(line.count <= 100, "\(line)") }
        var ended = JobInfo(jobType: "Completed")
        ended.id = job.id
        ended.domain = "vm1"
        ended.outcome = "completed"
        ended.begun = Date(timeIntervalSince1970: 0)
        ended.ended = Date(timeIntervalSince1970: 185)
        ended.checkpoint = "c1"
        let past = ConsoleText.endedJobs([ended], quiet: true)
        #expect(past.contains(" 1970-01-01 00:00:00 +0000   3:05 min\n"))
        #expect(past.contains("Checkpoint:    c1 (gone)\n"))
    }

    @Test("progress is one line")
    func progress() {
        var info = JobInfo(jobType: "Unbounded")
        info.tempUsed = 1 << 20
        #expect(
            ConsoleText.progress(info, bytesPerSecond: nil) == "no client yet, scratch 1 MiB")
        info.bytesRead = 1 << 30
        info.bytesToRead = 4 << 30
        var rate = ConsoleText.Rate()
        rate.note(bytes: 0, at: 10)
        #expect(rate.bytesPerSecond == nil)
        rate.note(bytes: 1 << 30, at: 12)
        #expect(
            ConsoleText.progress(info, bytesPerSecond: rate.bytesPerSecond)
                == "25.0 %, 1 GiB of 4 GiB, 512 MiB/s, 6 s left, scratch 1 MiB")
        info.bytesRead = 5 << 30
        info.errorMessage = "x"
        #expect(
            ConsoleText.progress(info, bytesPerSecond: 1)
                == "100.0 %, 4 GiB of 4 GiB, scratch 1 MiB, broken: x")
    }
}
