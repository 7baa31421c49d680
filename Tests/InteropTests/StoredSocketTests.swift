import Foundation
import Glibc
import TestSupport
import Testing

extension InteropSuite {
    /// A service manager keeps the server's sockets from one process to the next.
    @Suite struct StoredSocketTests {
        /// A small service manager: it starts the server, keeps the descriptors that it is sent,
        /// hands them to the next one, and does what stands in a file of commands.
        private static let manager = """
            import ctypes, os, signal, socket, sys, time
            notify, commands, binary = sys.argv[1:4]
            # Whoever loses its parent becomes this process's child.
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
            hearing = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            hearing.bind(notify)
            store, main = {}, 0
            def say(*words): print(*words, flush=True)
            def hear(wanted, seconds=30):
                global main
                hearing.settimeout(seconds)
                while True:
                    data, passed, _, _ = hearing.recvmsg(4096, socket.CMSG_SPACE(256))
                    text = data.decode()
                    found = [int.from_bytes(p[2][i:i + 4], "little")
                             for p in passed for i in range(0, len(p[2]), 4)]
                    say("HEARD", repr(text))
                    fields = dict(line.split("=", 1) for line in text.split("\\n"))
                    name = fields.get("FDNAME")
                    if "FDSTORE" in fields:
                        for number in found:
                            if name in store: os.close(store[name])
                            store[name] = number
                    if "FDSTOREREMOVE" in fields and name in store: os.close(store.pop(name))
                    if "MAINPID" in fields: main = int(fields["MAINPID"])
                    if wanted in fields: return
            def start():
                global main
                main = os.fork()
                if main: return hear("READY")
                names = list(store)
                for index, name in enumerate(names): os.dup2(store[name], 200 + index)
                for index in range(len(names)):
                    os.dup2(200 + index, 3 + index, inheritable=True)
                os.environ.update(NOTIFY_SOCKET=notify, LISTEN_PID=str(os.getpid()),
                                  LISTEN_FDS=str(len(names)), LISTEN_FDNAMES=":".join(names))
                os.execv(binary, sys.argv[3:])
            def again(number):
                os.kill(main, number)
                say("STATUS", os.waitstatus_to_exitcode(os.waitpid(main, 0)[1]))
                # What it said last has been sent before it ended.
                try: hear("nothing", 0.1)
                except TimeoutError: pass
                say("GAP", *sorted(store))
                time.sleep(0.5)
                start()
            start()
            say("PHASE 0")
            done = 0
            while True:
                lines = open(commands).read().split()
                if done >= len(lines):
                    time.sleep(0.01)
                    continue
                command, done = lines[done], done + 1
                if command == "kill": again(signal.SIGKILL)
                if command == "restart": again(signal.SIGUSR1)
                if command == "upgrade":
                    os.kill(main, signal.SIGUSR2)
                    hear("MAINPID")
                if command == "stop":
                    os.kill(main, signal.SIGTERM)
                    say("STATUS", os.waitstatus_to_exitcode(os.waitpid(main, 0)[1]))
                    sys.exit(0)
                say("PHASE", done)
            """

        @Test("clients of a job whose disk is late wait at its socket, and nobody turns them away")
        func late() throws {
            let directory = try TemporaryDirectory()
            let folder = directory.file("disks")
            try FileManager.default.createDirectory(
                atPath: folder, withIntermediateDirectories: false)
            let path = folder + "/disk"
            let content = try Images.mixed(path, bytes: 4 << 20, seed: 5)
            let (run, commands) = (directory.file("run"), directory.file("commands"))
            try Files.write("", to: commands)
            let manager = try Command(
                "/usr/bin/python3",
                [
                    "-c", Self.manager, directory.file("notify"), commands,
                    try ServerUnderTest.binary(), "serve", "--state-dir", directory.file("state"),
                    "--run-dir", run, "--disk", "vda=\(path)",
                ])
            try manager.wait(for: "begin", timeout: 40) { $0.stdout.contains("PHASE 0\n") }
            let begun = try Command.run(
                try ServerUnderTest.binary(),
                ["backup-begin", "default", "--scratch-dir", directory.path, "--json"],
                environment: ["NBDPULL_SOCKET": run + "/control.sock"]
            ).output()
            let job = try BegunJob(json: begun)
            // The folder: a file that is renamed counts as changed.
            try FileManager.default.moveItem(atPath: folder, toPath: folder + ".away")
            try Files.write("kill", to: commands)
            try manager.wait(for: "restart", timeout: 40) { $0.stdout.contains("PHASE 1\n") }
            // The server is there, the disk is not.
            let copy = directory.file("copy")
            let client = try Command("nbdcopy", [try job.uri("vda"), copy])
            Thread.sleep(forTimeInterval: 1.5)
            #expect(client.isRunning)
            try FileManager.default.moveItem(atPath: folder + ".away", toPath: folder)
            try client.result(timeout: 30).output()
            #expect(try Bytes.ofFile(copy) == content)
            try Files.write("kill\nstop", to: commands)
            let result = try manager.result(timeout: 30)
            #expect(result.succeeded, "\(result)")
        }

        @Test("sockets outlive a kill, a restart and an upgrade in the service manager's store")
        func store() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            let content = try Images.mixed(path, bytes: 8 << 20, seed: 5)
            let (run, commands) = (directory.file("run"), directory.file("commands"))
            let port = Ports.free()
            try Files.write("", to: commands)
            let manager = try Command(
                "/usr/bin/python3",
                [
                    "-c", Self.manager, directory.file("notify"), commands,
                    try ServerUnderTest.binary(), "serve", "--state-dir", directory.file("state"),
                    "--run-dir", run, "--live-tcp", "127.0.0.1:\(port)", "--disk", "vda=\(path)",
                ])
            func cli(_ words: [String]) throws -> String {
                try Command.run(
                    try ServerUnderTest.binary(), words,
                    environment: ["NBDPULL_SOCKET": run + "/control.sock"]
                ).output()
            }
            var said: [String] = []
            func command(_ word: String) throws {
                said.append(word)
                try Files.write(said.joined(separator: "\n"), to: commands)
            }
            func phase() throws {
                try manager.wait(for: "phase \(said.count)", timeout: 40) {
                    $0.stdout.contains("PHASE \(said.count)\n")
                }
            }
            try phase()
            let job = try BegunJob(json: try cli(["backup-begin", "default", "--json"]))
            for word in ["kill", "restart"] {
                try command(word)
                let gaps = said.count
                try manager.wait(for: "gap") {
                    $0.stdout.components(separatedBy: "GAP").count > gaps
                }
                // Nobody serves now, and nobody is turned away.
                for uri in [
                    "nbd+unix:///default/vda?socket=\(run)/live.sock",
                    "nbd://127.0.0.1:\(port)/default/vda", try job.uri("vda"),
                ] {
                    #expect(try NBDClient(uri).read(0, 4096).elementsEqual(content.prefix(4096)))
                }
                try phase()
                #expect(try cli(["backup-list", "default"]).contains(job.id))
            }
            try command("upgrade")
            try phase()
            #expect(try cli(["backup-list", "default"]).contains(job.id))
            _ = try cli(["backup-end", "default", "--job", job.id])
            try command("stop")
            let result = try manager.result(timeout: 30)
            #expect(result.succeeded, "\(result)")
            let heard = result.stdout
            #expect(heard.contains("FDNAME=nbdpull-control="), "\(heard)")
            #expect(heard.contains("RELOADING=1\\nMONOTONIC_USEC="), "\(heard)")
            #expect(heard.contains("MAINPID="), "\(heard)")
            #expect(heard.components(separatedBy: "STATUS 0\n").count == 3, "\(heard)")
            #expect(!Files.exists(run + "/live.sock"))
        }
    }
}
