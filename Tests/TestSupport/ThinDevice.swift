import Foundation

/// A loop device that promises more than it has: writes past its room are taken into the page
/// cache, and fail when the kernel brings them to the device.
package final class ThinDevice {
    private let directory: TemporaryDirectory
    private var device: LoopDevice?
    private let mount: String

    package var path: String { device?.path ?? "" }

    /// `promises` MiB over a tmpfs of `has` MiB.
    package init(promises: Int, has: Int) throws {
        directory = try TemporaryDirectory()
        mount = try directory.directory("room")
        try Command.run("mount", ["-t", "tmpfs", "-o", "size=\(has)m", "none", mount]).output()
        let image = mount + "/image"
        try Images.sparse(image, bytes: promises << 20)
        device = try LoopDevice(over: image)
    }

    /// Has everything written back, and forgets what the page cache holds of the device.
    package func forgetCache() throws {
        // The errors are the point.
        _ = try Command.run("blockdev", ["--flushbufs", path])
        _ = try Command.run("sh", ["-c", "echo 3 > /proc/sys/vm/drop_caches"])
    }

    deinit {
        device = nil
        for _ in 0..<50 {
            if let result = try? Command.run("umount", [mount]), result.succeeded { return }
            Thread.sleep(forTimeInterval: 0.1)
        }
        _ = try? Command.run("umount", ["-l", mount])
    }
}
