import SystemLayer

/// Files that hold no disk and no scratch, no matter who names them: the server's own state, and
/// what the kernel shows of itself as files.
package struct ReservedPaths: Sendable {
    /// Files and directories that belong to the server.
    private let own: [String]

    package init(_ own: [String] = []) { self.own = own }

    /// Throws when an open file is one of them, also when it was opened through links.
    ///
    /// What has another name of its own, by a hard link or a bind mount, is not recognised.
    package func check(_ descriptor: Int32) throws(SourceFault) {
        if FileCalls.isKernelInterface(descriptor) { throw .kernelInterface }
        guard !own.isEmpty, let path = FileCalls.path(of: descriptor) else { return }
        for place in own {
            guard let place = FileCalls.resolved(place) else { continue }
            if path == place || path.hasPrefix(place + "/") { throw .ownState }
        }
    }
}
