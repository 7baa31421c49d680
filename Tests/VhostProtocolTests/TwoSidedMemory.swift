import VhostClient
import VhostProtocol

/// Memory between two processors: each side's stores may wait in a buffer until its next fence, and
/// before each of the device's accesses that the driver could notice, a test may let the driver go
/// on.
final class TwoSidedMemory: GuestMemory {
    private struct Store {
        let address: Int
        let bytes: [UInt8]
    }

    private var bytes: [UInt8]
    private var deviceStores: [Store] = []
    private var driverStores: [Store] = []
    /// Whether stores wait as long as they may.
    let isLazy: Bool
    /// Whether the device's fences do what they should.
    let hasFences: Bool
    /// Places that both sides touch while they run.
    var shared: Set<UInt64> = []
    var onAccess: (() -> Void)?

    init(_ byteCount: Int, isLazy: Bool, hasFences: Bool) {
        bytes = Array(repeating: 0, count: byteCount)
        self.isLazy = isLazy
        self.hasFences = hasFences
    }

    /// What the device has stored reaches memory at last.
    func drainDevice() {
        for store in deviceStores { put(store) }
        deviceStores = []
    }

    func drainDriver() {
        for store in driverStores { put(store) }
        driverStores = []
    }

    private func put(_ store: Store) {
        bytes.replaceSubrange(store.address..<store.address + store.bytes.count, with: store.bytes)
    }

    fileprivate func driverWrites(_ bytes: [UInt8], _ address: UInt64) {
        let store = Store(address: Int(address), bytes: bytes)
        if isLazy { driverStores.append(store) } else { put(store) }
    }

    fileprivate func driverReads(_ address: UInt64, _ count: Int) -> [UInt8] {
        // A processor sees its own stores.
        for store in driverStores.reversed() where store.address == Int(address) {
            return store.bytes
        }
        return Array(bytes[Int(address)..<Int(address) + count])
    }

    // MARK: The device's side

    func segment(at address: UInt64, byteCount: UInt64) -> GuestSegment? {
        guard address < UInt64(bytes.count) else { return nil }
        return GuestSegment(
            place: GuestPlace(rawValue: address),
            byteCount: min(byteCount, UInt64(bytes.count) - address))
    }

    private func load<T: FixedWidthInteger & UnsignedInteger>(
        _ place: GuestPlace, as: T.Type
    ) -> T {
        if shared.contains(place.rawValue) { onAccess?() }
        return number(bytes, Int(place.rawValue), as: T.self)
    }

    private func store<T: FixedWidthInteger & UnsignedInteger>(_ value: T, _ place: GuestPlace) {
        if shared.contains(place.rawValue) { onAccess?() }
        let store = Store(address: Int(place.rawValue), bytes: little(value))
        if isLazy { deviceStores.append(store) } else { put(store) }
    }

    func load8(_ place: GuestPlace) -> UInt8 { load(place, as: UInt8.self) }
    func load16(_ place: GuestPlace) -> UInt16 { load(place, as: UInt16.self) }
    func load64(_ place: GuestPlace) -> UInt64 { load(place, as: UInt64.self) }
    func loadPair(_ place: GuestPlace) -> GuestWords {
        GuestWords(
            first: load(place, as: UInt64.self),
            second: load(place.advanced(by: 8), as: UInt64.self))
    }
    func store8(_ value: UInt8, _ place: GuestPlace) { store(value, place) }
    func store16(_ value: UInt16, _ place: GuestPlace) { store(value, place) }
    func store32(_ value: UInt32, _ place: GuestPlace) { store(value, place) }
    func store64(_ value: UInt64, _ place: GuestPlace) { store(value, place) }
    func fence() {
        onAccess?()
        if hasFences { drainDevice() }
    }
}

/// The same memory from the driver's side.
final class DriverSide: DriverMemory {
    private let memory: TwoSidedMemory
    init(_ memory: TwoSidedMemory) { self.memory = memory }

    func read(_ address: UInt64, _ count: Int) -> [UInt8] { memory.driverReads(address, count) }
    func write(_ bytes: [UInt8], _ address: UInt64) { memory.driverWrites(bytes, address) }
    func fence() { memory.drainDriver() }
}
