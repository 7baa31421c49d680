import Control
import Foundation
import ServerInterface
import Testing

@Suite struct TextTests {
    @Test func urisAreEncoded() {
        func unix(_ name: String, _ path: String) -> String {
            ExportURI.text(endpoint: .unix(path: path, mode: 0), name: name)
        }
        func tcp(_ host: String) -> String {
            ExportURI.text(endpoint: .tcp(host: host, port: 10809), name: "vda")
        }
        #expect(unix("vda", "/r/b.sock") == "nbd+unix:///vda?socket=/r/b.sock")
        #expect(unix("a b/ü", "/r/&?") == "nbd+unix:///a%20b/%C3%BC?socket=/r/%26%3F")
        #expect(tcp("127.0.0.1") == "nbd://127.0.0.1:10809/vda")
        #expect(tcp("::1") == "nbd://[::1]:10809/vda")
    }

    @Test func plaintextStaysOnThisMachine() {
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "::1"] {
            #expect(PlaintextPolicy.isLoopback(host))
        }
        for host in ["0.0.0.0", "::", "127.0.0.1.example.org", "127.1", "192.0.2.1", "127"] {
            #expect(!PlaintextPolicy.isLoopback(host))
        }
    }

    @Test func tablesLookAsVirshPrintsThem() {
        let disk = DiskView(
            disk: "vda", source: "/img/a", type: "file", device: "disk", readOnly: false)
        let text = """
             Target   Source
            ------------------
             vda      /img/a


            """
        #expect(ConsoleText.disks([disk], details: false, quiet: false) == text)
        #expect(ConsoleText.disks([disk], details: false, quiet: true) == " vda   /img/a\n")
    }

    @Test func jobFiguresLookAsVirshPrintsThem() {
        var info = JobInfo(jobType: "Unbounded")
        info.operation = "Backup"
        info.timeElapsed = 52
        info.tempUsed = 0
        info.tempTotal = 1 << 30
        info.holdNanoseconds = 91_500
        let text = """
            Job type:         Unbounded
            Operation:        Backup
            Time elapsed:     52           ms
            Temporary disk space use: 0.000 B
            Temporary disk space total: 1.000 GiB
            Writes held:      92           us


            """
        #expect(ConsoleText.jobInfo(info) == text)
        info.bytesRead = 1 << 20
        info.bytesToRead = 5 << 20
        let progress = """
            File processed:   1.000 MiB
            File remaining:   4.000 MiB
            File total:       5.000 MiB
            Temporary disk space use: 0.000 B
            """
        #expect(ConsoleText.jobInfo(info).contains(progress))
        let raw = "disk_total: 5242880\ndisk_processed: 1048576\ndisk_remaining: 4194304\n"
        #expect(ConsoleText.rawJobInfo(info).contains("time_elapsed: 52\n" + raw + "disk_temp"))
        #expect(ConsoleText.capacity(1536) == "1.500 KiB")
        #expect(ConsoleText.capacity(UInt64.max) == "16.000 EiB")
    }

    @Test func labelsAreEscaped() {
        #expect(MetricsText.escapedLabel("a\"b\\c\nd") == "a\\\"b\\\\c\\nd")
    }

    @Test func eventsAreOneLine() {
        let event = ControlEvent(.jobBroken, domain: "a\nb", id: "1", message: "x\ny")
        #expect(event.line == "1970-01-01T00:00:00.000Z job-broken domain=a b job=1 : x y")
    }

    @Test func serveArgumentsAreRead() throws {
        let disk = try ServeArguments.disk("vda=/a,,b.raw,format=raw,readonly")
        #expect(disk.path == "/a,b.raw")
        #expect(disk.readOnly)
        let image = try ServeArguments.disk("vda=/a,format=qcow2").image
        #expect(image?.layers == [ImageLayer(.qcow2, .file(path: "/a"))])
        #expect(try ServeArguments.disk("vda=rbd:p/i").path == "rbd:p/i")
        for bad in [
            "vda=rbd:p", "vda=rbd:p/i,format=qcow2", "vda", "=x", "vda=", "vda=/a,format=qed",
            "vda=/a,ro", "v/a=/a",
        ] {
            #expect(throws: ControlError.self) { try ServeArguments.disk(bad) }
        }
        #expect(
            try ServeArguments.tcpEndpoint("[::1]:0", option: "--tcp")
                == .tcp(host: "::1", port: nil))
        for bad in ["10809", ":1", "::1:1", "a:b", "a:65536"] {
            #expect(throws: ControlError.self) {
                try ServeArguments.tcpEndpoint(bad, option: "--tcp")
            }
        }
    }

    @Test("a service manager's directories come before the defaults, and only absolute ones")
    func directoriesOfTheService() {
        #expect(DefaultPlaces.ofService("/var/lib/a:/var/lib/b") == "/var/lib/a")
        for none in [nil, "", ":", "lib/a", "lib/a:/var/lib/b"] {
            #expect(DefaultPlaces.ofService(none) == nil)
        }
    }

    @Test func aFullEventLogDropsItsOldest() {
        let log = EventLog(capacity: 3)
        for _ in 0..<5 { log.append(ControlEvent(.watermark)) }
        #expect(log.recent.map(\.sequence) == [3, 4, 5])
        #expect(log.totalCount == 5)
    }
}
