import Testing

/// A table written as text: a header line, then rows; cells stand between blanks, `|` is for the
/// eye.
struct TextTable: Sendable {
    struct Cell: Sendable, CustomTestStringConvertible {
        let row: [String]
        let column: String
        let value: String
        var testDescription: String { "\(row.joined(separator: " ")), \(column): \(value)" }
    }

    /// Every cell, row by row; the first `keys` columns name the row.
    let cells: [Cell]
    /// The names of the rows.
    let rows: [[String]]
    let columns: [String]

    init(keys: Int, _ text: String) {
        let lines = text.split(separator: "\n").map { line in
            line.split(separator: " ").map(String.init).filter { $0 != "|" }
        }
        let header = lines.first ?? []
        let body = lines.dropFirst()
        precondition(body.allSatisfy { $0.count == header.count }, "a row has too many cells")
        columns = Array(header.dropFirst(keys))
        rows = body.map { Array($0.prefix(keys)) }
        cells = body.flatMap { line in
            (keys..<header.count).map {
                Cell(row: Array(line.prefix(keys)), column: header[$0], value: line[$0])
            }
        }
    }
}
