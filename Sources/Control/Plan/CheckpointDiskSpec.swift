/// Reads `--diskspec` of `checkpoint-create-as`.
package enum CheckpointDiskSpec {
    /// Writes the `<domaincheckpoint>` that the options of `checkpoint-create-as` describe.
    ///
    /// - Throws: 8 for a specification that cannot be read.
    package static func document(
        name: String?, description: String?, diskspecs: [String]
    ) throws(ControlError) -> String {
        var disks: [[(String, String?)]] = []
        for text in diskspecs { disks.append(try attributes(text)) }
        var writer = XMLWriter()
        writer.element("domaincheckpoint") { root in
            if let name { root.leaf("name", text: name) }
            if let description { root.leaf("description", text: description) }
            guard !disks.isEmpty else { return }
            root.element("disks") { list in
                for disk in disks { list.empty("disk", disk) }
            }
        }
        return writer.text
    }

    // `DISK[,checkpoint=TYPE][,bitmap=NAME]`; a comma in a part is written twice.
    private static func attributes(_ text: String) throws(ControlError) -> [(String, String?)] {
        var parts = ServeArguments.commaSeparated(text)
        let disk = parts.removeFirst()
        guard !disk.isEmpty else { throw refusal(text, "the disk is missing") }
        var checkpoint: String?
        var bitmap: String?
        for part in parts {
            if part.hasPrefix("checkpoint="), checkpoint == nil {
                checkpoint = String(part.dropFirst("checkpoint=".count))
            } else if part.hasPrefix("bitmap="), bitmap == nil {
                bitmap = String(part.dropFirst("bitmap=".count))
            } else {
                throw refusal(text, "'\(part)' is unknown or given twice")
            }
        }
        return [("name", disk), ("checkpoint", checkpoint), ("bitmap", bitmap)]
    }

    private static func refusal(_ text: String, _ detail: String) -> ControlError {
        .invalidArgument(
            what: "--diskspec '\(text)'",
            detail: "\(detail); it must be DISK[,checkpoint=TYPE][,bitmap=NAME]")
    }
}
