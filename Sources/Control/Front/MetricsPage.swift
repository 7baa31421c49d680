import ServerInterface

/// Families of samples in the Prometheus text format.
struct MetricsPage {
    typealias Labels = [(String, String)]

    private(set) var text = ""

    mutating func gauge(_ name: String, _ help: String, _ samples: [(Labels, Double)]) {
        head(name, "gauge", help)
        for (labels, value) in samples { sample(name, labels, Self.number(value)) }
    }

    mutating func counter(_ name: String, _ help: String, _ samples: [(Labels, Double)]) {
        head(name, "counter", help)
        for (labels, value) in samples { sample(name, labels, Self.number(value)) }
    }

    mutating func histogram(
        _ name: String, _ help: String, _ samples: [(Labels, DurationHistogram)]
    ) {
        head(name, "histogram", help)
        for (labels, value) in samples {
            var below: UInt64 = 0
            for step in 0..<DurationHistogram.boundCount {
                below &+= value.counts[step]
                let bound = Double(DurationHistogram.boundNanoseconds(step)) / 1e9
                sample(name + "_bucket", labels + [("le", Self.number(bound))], String(below))
            }
            sample(name + "_bucket", labels + [("le", "+Inf")], String(value.count))
            sample(name + "_sum", labels, Self.number(Double(value.totalNanoseconds) / 1e9))
            sample(name + "_count", labels, String(value.count))
        }
    }

    private mutating func head(_ name: String, _ type: String, _ help: String) {
        text += "# HELP \(name) \(help)\n# TYPE \(name) \(type)\n"
    }

    private mutating func sample(_ name: String, _ labels: Labels, _ value: String) {
        let pairs = labels.map { "\($0)=\"\(MetricsText.escapedLabel($1))\"" }
        let list = pairs.isEmpty ? "" : "{\(pairs.joined(separator: ","))}"
        text += "\(name)\(list) \(value)\n"
    }

    private static func number(_ value: Double) -> String {
        value == value.rounded() && value.magnitude < 9e15 ? String(Int64(value)) : String(value)
    }
}
