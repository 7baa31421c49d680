import CLinux
import Glibc

extension FileCalls {
    /// Whether the page cache holds all of a file's range; false where the kernel cannot tell.
    package static func isResident(_ descriptor: Int32, position: UInt64, count: Int) -> Bool {
        let last = (position + UInt64(count) - 1) >> 12
        return nbdpull_cached_pages(descriptor, position, UInt64(count))
            == Int(last - (position >> 12)) + 1
    }

    /// Whether the page cache holds nothing of a file's range; false where the kernel cannot tell.
    package static func isAbsent(_ descriptor: Int32, _ range: Range<UInt64>) -> Bool {
        nbdpull_cached_pages(descriptor, range.lowerBound, range.upperBound - range.lowerBound) == 0
    }

    /// Has the kernel split the folio of the page cache that holds a page of a file into single
    /// pages; it stays as it is where it is dirty, locked or mapped by others.
    ///
    /// False when the kernel or the file system cannot do it. May wait for whom a write of that page
    /// would wait.
    package static func splitFolio(_ descriptor: Int32, at position: UInt64) -> Bool {
        let page = pageBytes
        let errno = nbdpull_split_folio(
            descriptor, position / UInt64(page) * UInt64(page), page)
        return ![EINVAL, ENODEV, ENOSYS, EPERM, EACCES].contains(errno)
    }

    /// Whether a small write through the page cache is the dearer, the larger the folio is that it
    /// goes to: so it is where the kernel has a record for each block of a folio, on ext4 and on block
    /// devices (Linux 6.18).
    package static func paysForLargeFolios(_ descriptor: Int32, type: FileType) -> Bool {
        if type == .blockDevice { return true }
        var facts = statfs()
        // SAFETY: the kernel fills the local; it keeps no pointer.
        return unsafe fstatfs(descriptor, &facts) == 0
            && Int(facts.f_type) == nbdpull_EXT4_SUPER_MAGIC
    }
}
