/// Lists for people: they fit a terminal of 100 columns, and sizes have units.
///
/// What does not fit into a row stands below it, on lines of its own. `--json` has everything in
/// bytes.
extension ConsoleText {
    /// Columns that lists keep within, if no single word is longer.
    package static let columns = 100

    /// One row of a list.
    struct Row {
        var cells: [String]
        /// What stands below the row: a label and a text each.
        var details: [(label: String, text: String)] = []
    }

    /// A table whose widest columns move below their rows when it would be too wide.
    ///
    /// - Parameter movable: columns that may move, the first to go first.
    static func list(
        _ head: [String], _ rows: [Row], movable: [Int], quiet: Bool
    ) -> String {
        var head = head
        var rows = rows
        // Highest first when several go, so that positions stay valid.
        var moved: [Int] = []
        for column in movable where width(head, rows, without: moved) > columns {
            moved.append(column)
        }
        for index in rows.indices {
            let cells = rows[index].cells
            let extra = moved.sorted().filter { cells[$0] != "-" }
                .map { (label: head[$0], text: cells[$0]) }
            rows[index].details = extra + rows[index].details
        }
        for column in moved.sorted(by: >) {
            head.remove(at: column)
            for index in rows.indices { rows[index].cells.remove(at: column) }
        }
        let lines = table(head, rows.map(\.cells), quiet: quiet)
            .split(separator: "\n", omittingEmptySubsequences: false)
        let first = quiet ? 0 : 2
        var text = lines.prefix(first).map { $0 + "\n" }.joined()
        for (index, row) in rows.enumerated() {
            text += lines[first + index] + "\n"
            for detail in row.details { text += wrapped(detail.label + ":", detail.text) }
        }
        return text + (quiet ? "" : "\n")
    }

    private static func width(_ head: [String], _ rows: [Row], without: [Int]) -> Int {
        let kept = head.indices.filter { !without.contains($0) }
        let widths = kept.map { column in
            max(head[column].count, rows.map { $0.cells[column].count }.max() ?? 0)
        }
        return 1 + widths.reduce(0, +) + 3 * (widths.count - 1)
    }

    private static let labelWidth = 14

    // A label, and a text that goes on below itself; a word is never broken, so that it can be
    // copied.
    private static func wrapped(_ label: String, _ text: String) -> String {
        let indent = "   "
        let padding = String(repeating: " ", count: max(labelWidth - label.count, 0))
        var result = ""
        var line = indent + label + padding
        let blank = String(repeating: " ", count: line.count)
        var isEmpty = true
        for word in text.split(separator: " ") {
            if !isEmpty, line.count + 1 + word.count > columns {
                result += line + "\n"
                line = blank
                isEmpty = true
            }
            line += " " + word
            isEmpty = false
        }
        return result + line + "\n"
    }

    /// Bytes as a person reads them: `512 B`, `1.5 GiB`, `150 MiB`.
    package static func size(_ bytes: UInt64) -> String {
        var value = Double(bytes)
        var unit = "B"
        for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] where value >= 1023.95 {
            value /= 1024
            unit = next
        }
        let tenths = UInt64((value * 10).rounded())
        guard unit != "B", tenths < 1000, !tenths.isMultiple(of: 10) else {
            return "\(UInt64(value.rounded())) \(unit)"
        }
        return "\(tenths / 10).\(tenths % 10) \(unit)"
    }

    /// A length of time: `42 s`, `3:05 min`, `2:03 h`.
    package static func duration(_ seconds: Double) -> String {
        guard seconds.isFinite, seconds < 1e9 else { return "-" }
        let whole = Int(max(seconds, 0).rounded())
        if whole < 60 { return "\(whole) s" }
        let (large, small) =
            whole < 3600 ? (whole / 60, whole % 60) : (whole / 3600, whole % 3600 / 60)
        return "\(large):\(small < 10 ? "0" : "")\(small) \(whole < 3600 ? "min" : "h")"
    }
}

extension ConsoleText {
    /// Bytes per second over the last samples.
    package struct Rate: Sendable {
        private var samples: [(bytes: UInt64, time: Double)] = []
        /// Older samples say little about what is left.
        private static let samplesMax = 10

        package init() {}

        /// Adds a sample: bytes so far, and the time in seconds.
        package mutating func note(bytes: UInt64, at time: Double) {
            samples.append((bytes, time))
            if samples.count > Self.samplesMax { samples.removeFirst() }
        }

        /// Nil before there are two samples, or when nothing has moved.
        package var bytesPerSecond: Double? {
            guard let first = samples.first, let last = samples.last, last.time > first.time,
                last.bytes > first.bytes
            else { return nil }
            return Double(last.bytes - first.bytes) / (last.time - first.time)
        }
    }

    /// How far a job has come, in one line.
    package static func progress(_ info: JobInfo, bytesPerSecond: Double?) -> String {
        var parts: [String] = []
        if let read = info.bytesRead, let total = info.bytesToRead {
            let share = total == 0 ? 1000 : Int(Double(min(read, total)) / Double(total) * 1000)
            parts.append("\(share / 10).\(share % 10) %")
            parts.append("\(size(min(read, total))) of \(size(total))")
            if let bytesPerSecond, read < total {
                parts.append("\(size(UInt64(bytesPerSecond)))/s")
                parts.append("\(duration(Double(total - read) / bytesPerSecond)) left")
            }
        } else {
            parts.append("no client yet")
        }
        if let used = info.tempUsed { parts.append("scratch \(size(used))") }
        if let message = info.errorMessage { parts.append("broken: \(message)") }
        return parts.joined(separator: ", ")
    }
}
