import Foundation

/// A loop device over a file, detached with its last owner.
package final class LoopDevice {
    package let path: String

    /// Attaches a file.
    ///
    /// Needs root and the loop driver; without them the test fails and says so.
    package init(over file: String) throws {
        let result = try Command.run("losetup", ["--find", "--show", file])
        guard result.succeeded else {
            throw TestFailure("no loop device (root and the loop driver are needed): \(result)")
        }
        path = result.stdout.trimmingCharacters(in: .whitespacesAndNewlines)
    }

    deinit { _ = try? Command.run("losetup", ["--detach", path]) }
}

/// A small ext4 file system of its own, for running out of space and for freezing.
package final class TinyFileSystem {
    package let path: String
    private let directory: TemporaryDirectory
    private let device: LoopDevice
    private var isFrozen = false

    /// `lacking` names features of ext4 that it is made without.
    package init(mebibytes: Int, lacking: [String] = []) throws {
        directory = try TemporaryDirectory()
        let image = directory.file("image")
        try Images.sparse(image, bytes: mebibytes << 20)
        device = try LoopDevice(over: image)
        try Command.run(
            "mkfs.ext4",
            [
                "-q", "-F", "-m", "0", "-O",
                (["has_journal"] + lacking).map { "^" + $0 }.joined(separator: ","), device.path,
            ]
        ).output()
        path = try directory.directory("mount")
        try Command.run("mount", [device.path, path]).output()
    }

    /// Stops every write to the file system until ``thaw()``.
    package func freeze() throws {
        try Command.run("fsfreeze", ["-f", path]).output()
        isFrozen = true
    }

    package func thaw() throws {
        guard isFrozen else { return }
        try Command.run("fsfreeze", ["-u", path]).output()
        isFrozen = false
    }

    /// An error as a broken disk would cause it: from now on the file system is read-only.
    package func breakReadOnly() throws {
        try Command.run("mount", ["-o", "remount,errors=remount-ro", path]).output()
        let name = device.path.split(separator: "/").last ?? ""
        try Files.write("1", to: "/sys/fs/ext4/\(name)/trigger_fs_error")
    }

    /// Unmounts it, has it checked and mounts it again.
    package func repair() throws {
        // An error that the file system notes late leaves it read-only once more.
        for _ in 0..<5 {
            try Command.run("umount", [path]).output()
            _ = try Command.run("e2fsck", ["-f", "-y", device.path])
            try Command.run("mount", [device.path, path]).output()
            let probe = path + "/probe"
            if (try? Files.write("", to: probe)) != nil {
                Files.remove(probe)
                return
            }
        }
        throw TestFailure("'\(path)' stays read-only")
    }

    deinit {
        try? thaw()
        // A server that was just killed may hold the file system busy for a moment.
        for _ in 0..<50 {
            if let result = try? Command.run("umount", [path]), result.succeeded { return }
            Thread.sleep(forTimeInterval: 0.1)
        }
        _ = try? Command.run("umount", ["-l", path])
    }
}

/// An ext4 file system over an image for which there is less room than it believes: what it writes
/// is taken, and lost.
package final class LyingFileSystem {
    package let path: String
    private let directory: TemporaryDirectory
    private let room: String
    private var device: LoopDevice?
    private var image: String { room + "/image" }

    /// `roomMebibytes` is what is left for its content; a little is used from the start.
    package init(mebibytes: Int, roomMebibytes: Int) throws {
        directory = try TemporaryDirectory()
        room = try directory.directory("room")
        path = try directory.directory("mount")
        try Command.run(
            "mount", ["-t", "tmpfs", "-o", "size=\(roomMebibytes)m", "tmpfs", room]
        ).output()
        try Images.sparse(image, bytes: mebibytes << 20)
        device = try LoopDevice(over: image)
        try Command.run("mkfs.ext4", ["-q", "-F", "-m", "0", device?.path ?? ""]).output()
        try Command.run("mount", [device?.path ?? "", path]).output()
    }

    /// Takes all the room that is left.
    package func use() throws {
        try Command.run("sync", ["-f", path]).output()
        _ = try Command.run("dd", ["if=/dev/zero", "of=" + room + "/filler", "bs=4k"])
    }

    /// Unmounts it, makes room and mounts it again: what was lost stays lost.
    package func mountAnew() throws {
        _ = try Command.run("umount", [path])
        Files.remove(room + "/filler")
        _ = try Command.run("e2fsck", ["-f", "-y", device?.path ?? ""])
        try Command.run("mount", [device?.path ?? "", path]).output()
    }

    deinit {
        for _ in 0..<50 {
            if let result = try? Command.run("umount", [path]), result.succeeded { break }
            Thread.sleep(forTimeInterval: 0.1)
        }
        device = nil
        _ = try? Command.run("umount", [room])
    }
}
