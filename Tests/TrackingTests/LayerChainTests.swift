import Foundation
import Testing
import Tracking
import UnitSupport

/// A chain with its bits, and beside it what each checkpoint must answer.
private struct ChainWorld {
    var chain = LayerChain()
    var bits: [UInt64: UInt64] = [0: 0]
    /// Everything written since each checkpoint, in their order.
    var oracle: [(name: String, written: UInt64)] = []
    var nextName = 0

    mutating func write(_ blocks: UInt64) {
        bits[chain.recordingSerial, default: 0] |= blocks
        for index in oracle.indices { oracle[index].written |= blocks }
    }

    mutating func begin() -> Bool {
        let name = "c\(nextName)"
        nextName += 1
        guard let step = chain.begin(checkpoint: name) else { return false }
        guard step.keepsSealed == !oracle.isEmpty, bits[step.recording] == nil else { return false }
        if !step.keepsSealed { bits[step.sealed] = nil }
        bits[step.recording] = 0
        oracle.append((name, 0))
        return true
    }

    /// Deletes a checkpoint; between the steps of the plan every answer must hold already.
    mutating func delete(_ index: Int) -> Bool {
        let name = oracle[index].name
        let before = chain
        guard let plan = chain.delete(checkpoint: name) else { return false }
        let recording = before.recordingSerial
        var gone: UInt64?
        switch plan {
        case .drop(let serial):
            guard serial != recording else { return false }
            gone = serial
        case .merge(let serial, let parent):
            guard serial != recording, parent != recording, let moved = bits[serial] else {
                return false
            }
            bits[parent, default: 0] |= moved
            gone = serial
        case .mergeIntoRecording(let serial, let parent):
            guard serial == recording, let moved = bits[parent] else { return false }
            bits[serial, default: 0] |= moved
            gone = parent
        case .keepRecording(let serial):
            guard serial == recording, oracle.count == 1 else { return false }
        }
        // Cut here: the old chain, with bits that were moved already.
        for (position, entry) in oracle.enumerated() {
            guard let answer = answer(entry.name, in: before) else { return false }
            let isExact = answer == entry.written
            guard isExact || position == index && answer & entry.written == entry.written else {
                return false
            }
        }
        if let gone { bits[gone] = nil }
        oracle.remove(at: index)
        return chain.recordingSerial == recording
    }

    private func answer(_ name: String, in chain: LayerChain) -> UInt64? {
        guard let serials = chain.serials(since: name) else { return nil }
        var union: UInt64 = 0
        for serial in serials {
            guard let layer = bits[serial] else { return nil }
            union |= layer
        }
        return serials.last == chain.recordingSerial ? union : nil
    }

    /// Whether every checkpoint's answer is the oracle's, and no layer is lost or left over.
    var isRight: Bool {
        chain.checkpoints == oracle.map(\.name)
            && bits.count == chain.layers.count
            && oracle.allSatisfy { answer($0.name, in: chain) == $0.written }
    }
}

@Suite("Chain of layers")
struct LayerChainTests {
    @Test("every sequence of 7 writes, checkpoints and deletions on 3 blocks")
    func exhaustive() {
        var states = 0
        var wrong: [String] = []
        walk(ChainWorld(), depth: 7, path: [], &states, &wrong)
        #expect(wrong.isEmpty, "\(wrong.first ?? "")")
        #expect(states > 50_000)
    }

    private func walk(
        _ world: ChainWorld, depth: Int, path: [String], _ states: inout Int,
        _ wrong: inout [String]
    ) {
        states += 1
        guard world.isRight else {
            wrong.append(path.joined(separator: ", "))
            return
        }
        guard depth > 0, wrong.isEmpty else { return }
        for block in 0..<3 {
            var next = world
            next.write(1 << UInt64(block))
            walk(next, depth: depth - 1, path: path + ["write \(block)"], &states, &wrong)
        }
        var next = world
        if !next.begin() { wrong.append((path + ["begin"]).joined(separator: ", ")) }
        walk(next, depth: depth - 1, path: path + ["begin"], &states, &wrong)
        for index in world.oracle.indices {
            var next = world
            let step = "delete \(world.oracle[index].name)"
            if !next.delete(index) { wrong.append((path + [step]).joined(separator: ", ")) }
            walk(next, depth: depth - 1, path: path + [step], &states, &wrong)
        }
    }

    @Test("long histories by seed", arguments: TrackingSeeds.all)
    func bySeed(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        var world = ChainWorld()
        for step in 0..<2000 {
            switch random.below(6) {
            case 0 where world.oracle.count < 12:
                #expect(world.begin() == true, "seed=\(seed) step=\(step)")
            case 1 where !world.oracle.isEmpty:
                let index = random.below(world.oracle.count)
                #expect(world.delete(index) == true, "seed=\(seed) step=\(step)")
            default:
                world.write(1 << UInt64(random.below(64)))
            }
            guard world.isRight else {
                Issue.record("seed=\(seed) step=\(step): \(world.chain)")
                return
            }
        }
        let bytes = try JSONEncoder().encode(world.chain)
        #expect(try JSONDecoder().decode(LayerChain.self, from: bytes) == world.chain)
    }

    @Test("a name that exists or does not exist changes nothing")
    func refusals() {
        var chain = LayerChain(firstSerial: 5)
        let step = chain.begin(checkpoint: "a")
        #expect(step?.sealed == 5 && step?.keepsSealed == false && step?.recording == 6)
        let before = chain
        #expect(chain.begin(checkpoint: "a") == nil)
        #expect(chain.delete(checkpoint: "b") == nil)
        #expect(chain.serials(since: "b") == nil)
        #expect(chain == before)
        #expect(chain.delete(checkpoint: "a") == .keepRecording(6))
        #expect(chain.checkpoints.isEmpty && chain.recordingSerial == 6)
    }

    @Test(
        "a chain that could not have been written is refused",
        arguments: [
            #"{"layers":[],"nextSerial":1}"#,
            #"{"layers":[{"serial":1}],"nextSerial":1}"#,
            #"{"layers":[{"serial":0}],"nextSerial":18446744073709551615}"#,
            #"{"layers":[{"serial":0},{"serial":1,"checkpoint":"a"}],"nextSerial":2}"#,
            #"{"layers":[{"serial":0,"checkpoint":"a"},{"serial":1}],"nextSerial":2}"#,
            #"{"nextSerial":2,"layers":[{"serial":1,"checkpoint":"a"},"#
                + #"{"serial":0,"checkpoint":"b"}]}"#,
            #"{"nextSerial":2,"layers":[{"serial":0,"checkpoint":"a"},"#
                + #"{"serial":1,"checkpoint":"a"}]}"#,
            #"{"layers":[{"serial":-1}],"nextSerial":1}"#,
        ])
    func damaged(text: String) {
        #expect(throws: DecodingError.self) {
            _ = try JSONDecoder().decode(LayerChain.self, from: Data(text.utf8))
        }
    }
}
