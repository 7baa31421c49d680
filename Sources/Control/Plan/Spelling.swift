/// Finds what somebody may have meant by a word that is not known.
package enum Spelling {
    /// Longest word that is compared; a longer one is no slip of the finger.
    private static let bytesMax = 64

    /// The known word nearest to `word`, nil when none is near.
    ///
    /// Near is a third of the word's letters changed, left out, added or swapped, at least one and
    /// at most four; capitals, `_` and `-` do not count.
    package static func nearest(_ word: String, in known: some Sequence<String>) -> String? {
        let plain = folded(word)
        guard !plain.isEmpty, plain.count <= bytesMax else { return nil }
        let limit = min(max(plain.count / 3, 1), 4)
        var best: (word: String, distance: Int)?
        for candidate in known {
            let distance = distance(plain, folded(candidate))
            if distance <= limit, distance < best?.distance ?? .max { best = (candidate, distance) }
        }
        return best?.word
    }

    /// What follows the name of an unknown word: its nearest neighbour, or all known words.
    package static func advice(_ word: String, known: [String]) -> String {
        if let near = nearest(word, in: known) { return "did you mean '\(near)'?" }
        guard !known.isEmpty else { return "none is known here" }
        return "known are \(known.sorted().joined(separator: ", "))"
    }

    private static func folded(_ word: String) -> [UInt8] {
        word.lowercased().utf8.filter { $0 != UInt8(ascii: "_") && $0 != UInt8(ascii: "-") }
    }

    // Damerau's distance: letters changed, left out, added, or swapped with their neighbour.
    private static func distance(_ one: [UInt8], _ other: [UInt8]) -> Int {
        var before: [Int] = []
        var last = Array(0...other.count)
        for row in 0..<one.count {
            var line = [row + 1]
            for column in 0..<other.count {
                let isSame = one[row] == other[column]
                var least = min(
                    last[column] + (isSame ? 0 : 1), last[column + 1] + 1, line[column] + 1)
                if row > 0, column > 0, one[row] == other[column - 1],
                    one[row - 1] == other[column]
                {
                    least = min(least, before[column - 1] + 1)
                }
                line.append(least)
            }
            (before, last) = (last, line)
        }
        return last[other.count]
    }
}
