import Foundation

/// A Ceph cluster of one monitor and one store in memory, on loopback, without authentication.
package final class CephCluster {
    /// Absolute path of its configuration.
    package let configuration: String
    private let directory: TemporaryDirectory
    private var processes: [Command] = []

    /// Starts it, with a pool named `rbd`.
    package init() throws {
        directory = try TemporaryDirectory()
        configuration = directory.file("ceph.conf")
        let cluster = UUID().uuidString.lowercased()
        let address = "127.0.0.1:\(Ports.free())"
        try Files.write(
            Self.settings(cluster, address, directory.path) + "\n", to: configuration)
        for name in ["mon", "osd"] {
            try FileManager.default.createDirectory(
                atPath: directory.file(name), withIntermediateDirectories: false)
        }
        let map = directory.file("monmap")
        try run(
            "monmaptool", ["--create", "--addv", "a", "[v1:\(address)]", "--fsid", cluster, map])
        try run("ceph-mon", ["--mkfs", "-i", "a", "--monmap", map])
        try start("ceph-mon", ["-f", "-i", "a", "--public-addr", address])
        let store = UUID().uuidString.lowercased()
        try ask("ceph", ["osd", "new", store])
        try run("ceph-osd", ["-i", "0", "--mkfs", "--osd-uuid", store])
        try start("ceph-osd", ["-f", "-i", "0"])
        let end = Date().addingTimeInterval(150)
        // The monitor refuses to answer while it elects itself once more.
        while !((try? run("ceph", ["osd", "stat"])) ?? "").contains("1 up") {
            guard Date() < end else {
                throw TestFailure("the cluster's store does not come up: " + said)
            }
            // One that asks before it knows of its monitor by whose cluster it is ends ("wrong
            // fsid"); a service manager would start it again.
            if let store = processes.last, !store.isRunning {
                processes.removeLast()
                try start("ceph-osd", ["-f", "-i", "0"])
            }
            Thread.sleep(forTimeInterval: 0.2)
        }
        try ask("ceph", ["osd", "crush", "add", "osd.0", "1", "root=default", "host=localhost"])
        try ask("ceph", ["osd", "pool", "create", "rbd", "8"])
        try ask("rbd", ["pool", "init", "rbd"])
    }

    /// Asks until it is done: the monitor refuses everything while it elects itself, and what is asked
    /// here has the same effect twice.
    private func ask(_ program: String, _ arguments: [String]) throws {
        let end = Date().addingTimeInterval(60)
        while true {
            do {
                try run(program, arguments)
                return
            } catch {
                guard Date() < end else { throw error }
                Thread.sleep(forTimeInterval: 0.2)
            }
        }
    }

    deinit { for process in processes.reversed() { process.kill() } }

    private static func settings(_ cluster: String, _ address: String, _ place: String) -> String {
        """
        [global]
        fsid = \(cluster)
        mon host = [v1:\(address)]
        auth cluster required = none
        auth service required = none
        auth client required = none
        osd pool default size = 1
        osd pool default min size = 1
        osd crush chooseleaf type = 0
        mon allow pool size one = true
        mon data avail crit = 1
        run dir = \(place)
        log file = \(place)/$name.log
        admin socket = $run_dir/$name.$pid.asok
        mon data = \(place)/mon
        osd data = \(place)/osd
        osd objectstore = memstore
        memstore device bytes = 1073741824
        ms bind ipv6 = false
        ms bind msgr2 = false
        public network = 127.0.0.0/8
        """
    }

    /// For a failure: the last words of the monitor and of the store.
    private var said: String {
        ["mon.a", "osd.0"].map { name in
            name + ": " + Files.read(directory.file(name + ".log")).suffix(600)
        }.joined(separator: "; ")
    }

    private func start(_ program: String, _ arguments: [String]) throws {
        processes.append(try Command(program, ["-c", configuration] + arguments))
    }

    /// Runs one of Ceph's programs to its end, which must be good; returns what it prints.
    @discardableResult
    package func run(_ program: String, _ arguments: [String]) throws -> String {
        let configured = program == "monmaptool" ? [] : ["-c", configuration]
        return try Command(program, configured + arguments).result(timeout: 60).output()
    }

    /// Makes an image of a file's bytes.
    package func add(_ image: String, from path: String) throws {
        try run("rbd", ["import", "--no-progress", path, "rbd/" + image])
    }

    /// Makes an image of zeros.
    package func create(_ image: String, mebibytes: Int) throws {
        try run("rbd", ["create", "--size", "\(mebibytes)M", "rbd/" + image])
    }

    /// The bytes of an image that nobody writes to.
    package func content(_ image: String) throws -> [UInt8] {
        let copy = directory.file("copy")
        defer { Files.remove(copy) }
        try run("rbd", ["export", "--no-progress", "rbd/" + image, copy])
        return try Bytes.ofFile(copy)
    }
}
