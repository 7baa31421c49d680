/// Names of meta contexts, and which of an export's contexts a client's queries mean.
package enum MetaContext {
    /// Allocation status of extents; every export has it.
    package static let allocation = "base:allocation"
    /// Prefix of a dirty bitmap's name.
    package static let dirtyBitmapPrefix = "qemu:dirty-bitmap:"

    /// Queries that mean everything beneath them when listing.
    private static let wildcards = ["base:", "qemu:", dirtyBitmapPrefix]

    /// Indices of the contexts that LIST_META_CONTEXT shows for `queries`, each once, in id order.
    ///
    /// No query at all asks for every context. What matches nothing is ignored. A name too long
    /// for the wire is left out: no query could select it.
    static func listed(in contexts: [String], by queries: [String]) -> [Int] {
        contexts.indices.filter { index in
            let name = contexts[index]
            guard name.utf8.count <= ProtocolLimits.stringBytesMax else { return false }
            return queries.isEmpty || queries.contains { matchesListing($0, name) }
        }
    }

    /// The contexts that SET_META_CONTEXT selects for `queries`, each once, in id order.
    ///
    /// Only exact names select; wildcards and unknown names are ignored.
    static func selected(in contexts: [String], by queries: [String]) -> [SelectedContext] {
        contexts.indices.prefix(ProtocolLimits.contextsMax).compactMap { index in
            let name = contexts[index]
            guard queries.contains(where: { name.hasSameBytes(as: $0) }) else { return nil }
            return SelectedContext(id: UInt32(index), name: name, index: index)
        }
    }

    private static func matchesListing(_ query: String, _ name: String) -> Bool {
        if name.hasSameBytes(as: query) { return true }
        return wildcards.contains(query) && name.hasBytePrefix(query)
    }
}

/// The answer to the last SET_META_CONTEXT.
///
/// It counts only for the export name it was made for.
struct ContextSelection: Sendable {
    let exportName: String
    let contexts: [SelectedContext]

    /// Whether every selected context is still where it was in `export`.
    ///
    /// An export can change between SET_META_CONTEXT and GO, for instance when a job ends.
    func isValid(for export: ExportDescription) -> Bool {
        contexts.allSatisfy { context in
            context.index < export.contexts.count
                && export.contexts[context.index].hasSameBytes(as: context.name)
        }
    }
}
