import VhostProtocol

/// Bytes that the other side changes between any two looks; an access outside them ends the process.
protocol ChangingMemory: AnyObject, GuestMemory {
    var bytes: [UInt8] { get set }
    /// Called before each access.
    func change()
}

extension ChangingMemory {
    private func load(_ place: GuestPlace, _ count: Int) -> UInt64 {
        change()
        precondition(place.rawValue <= UInt64(bytes.count - count), "a load outside the memory")
        let start = Int(place.rawValue)
        return (0..<count).reduce(0) { $0 | UInt64(bytes[start + $1]) << UInt64(8 * $1) }
    }

    private func store(_ value: UInt64, _ place: GuestPlace, _ count: Int) {
        change()
        precondition(place.rawValue <= UInt64(bytes.count - count), "a store outside the memory")
        for index in 0..<count {
            bytes[Int(place.rawValue) + index] =
                UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
        }
    }

    func load8(_ place: GuestPlace) -> UInt8 { UInt8(load(place, 1)) }
    func load16(_ place: GuestPlace) -> UInt16 { UInt16(load(place, 2)) }
    func load64(_ place: GuestPlace) -> UInt64 { load(place, 8) }
    func loadPair(_ place: GuestPlace) -> GuestWords {
        GuestWords(first: load(place, 8), second: load(place.advanced(by: 8), 8))
    }
    func store8(_ value: UInt8, _ place: GuestPlace) { store(UInt64(value), place, 1) }
    func store16(_ value: UInt16, _ place: GuestPlace) { store(UInt64(value), place, 2) }
    func store32(_ value: UInt32, _ place: GuestPlace) { store(UInt64(value), place, 4) }
    func store64(_ value: UInt64, _ place: GuestPlace) { store(value, place, 8) }
    func fence() {}
}
