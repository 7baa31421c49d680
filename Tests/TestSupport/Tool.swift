import Foundation

/// The other programs that tests drive the server with.
package enum Tool {
    /// The Debian package that brings a program.
    private static let packages = [
        "qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "qemu-nbd": "qemu-utils",
        "qemu-system-x86_64": "qemu-system-x86", "nbdinfo": "libnbd-bin", "nbdcopy": "libnbd-bin",
        "strace": "strace", "nbdsh": "python3-libnbd", "nbdkit": "nbdkit", "certtool": "gnutls-bin",
        "fio": "fio", "qemu-storage-daemon": "qemu-system-common",
        "losetup": "mount",
        "mount": "mount", "umount": "mount", "fsfreeze": "util-linux", "mkfs.ext4": "e2fsprogs",
        "e2fsck": "e2fsprogs", "cmp": "diffutils", "busybox": "busybox-static", "cpio": "cpio",
        "blockdev": "util-linux", "prlimit": "util-linux", "clang": "clang", "python3": "python3",
        "bash": "bash",
        "virsh": "libvirt-clients", "virtnbdbackup": "virtnbdbackup",
        "virtnbdrestore": "virtnbdbackup", "libvirtd": "libvirt-daemon",
        "ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "ceph": "ceph-common", "rbd": "ceph-common",
        "monmaptool": "ceph-base",
        "promtool": "prometheus", "xmllint": "libxml2-utils", "nc": "netcat-openbsd",
        "sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client",
    ]

    /// Where a program is.
    ///
    /// A missing one fails the test with the package to install.
    package static func path(_ name: String) throws -> String {
        if name.hasPrefix("/") { return name }
        let search = (ProcessInfo.processInfo.environment["PATH"] ?? "") + ":/usr/sbin:/sbin"
        for directory in search.split(separator: ":") {
            let candidate = directory + "/" + name
            if FileManager.default.isExecutableFile(atPath: candidate) { return candidate }
        }
        let package = packages[name] ?? name
        throw TestFailure("\(name) is not installed: run `apt-get install \(package)`")
    }

    /// Fails unless every one of these programs is installed.
    package static func require(_ names: String...) throws {
        for name in names { _ = try path(name) }
    }
}
