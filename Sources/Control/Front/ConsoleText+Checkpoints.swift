package import Foundation

extension ConsoleText {
    /// `virsh checkpoint-list`: a table, optionally with a column for parents.
    package static func checkpoints(
        _ checkpoints: [CheckpointView], parents: Bool, quiet: Bool
    ) -> String {
        let rows = checkpoints.map {
            [$0.name, time($0.creationTime)] + (parents ? [$0.parent ?? ""] : [])
        }
        return table(
            ["Name", "Creation Time"] + (parents ? ["Parent"] : []), rows, quiet: quiet)
    }

    /// `virsh checkpoint-list --name`: names, one per line.
    package static func checkpointNames(_ checkpoints: [CheckpointView]) -> String {
        checkpoints.map { $0.name + "\n" }.joined()
    }

    /// `virsh checkpoint-list --tree`: every root, or `root` alone, with what is below it.
    package static func checkpointTree(
        _ checkpoints: [CheckpointView], root: String? = nil
    ) -> String {
        let children = Dictionary(grouping: checkpoints) { $0.parent }
            .mapValues { $0.map(\.name) }
        let roots = root.map { [$0] } ?? children[nil] ?? []
        var text = ""
        // From the end of a list, so that the next to print is always the last.
        var open = roots.reversed().map { Branch(name: $0, indent: "", isRoot: true) }
        while let branch = open.popLast() {
            text += branch.indent + (branch.isRoot ? "" : "+- ") + branch.name + "\n"
            var below = branch.indent
            if !branch.isRoot { below += branch.isLast ? "  " : "| " }
            let names = children[branch.name] ?? []
            if names.isEmpty {
                if branch.isLast { text += trimmed(below) + "\n" }
                continue
            }
            text += below + "  |\n"
            for (position, name) in names.enumerated().reversed() {
                open.append(
                    Branch(
                        name: name, indent: below + "  ", isRoot: false,
                        isLast: position == names.count - 1))
            }
        }
        return text
    }

    /// `virsh checkpoint-info`: values at column 16.
    package static func checkpointInfo(_ checkpoint: CheckpointView) -> String {
        let lines = [
            ("Name:", checkpoint.name), ("Domain:", checkpoint.domain),
            ("Parent:", checkpoint.parent ?? "-"), ("Children:", String(checkpoint.children)),
            ("Descendants:", String(checkpoint.descendants)),
        ]
        return lines.map { label, value in
            label + String(repeating: " ", count: 16 - label.count) + value + "\n"
        }.joined()
    }

    /// A time as virsh prints it, in UTC: `2026-11-21 03:18:28 +0000`.
    package static func time(_ date: Date) -> String {
        let style = Date.ISO8601FormatStyle(dateTimeSeparator: .space)
        return date.formatted(style).replacing("Z", with: " +0000")
    }

    // One line of a tree that is still to be printed.
    private struct Branch {
        var name: String
        var indent: String
        var isRoot: Bool
        var isLast = true
    }

    private static func trimmed(_ text: String) -> String {
        var text = text
        while text.last == " " { text.removeLast() }
        return text
    }
}
