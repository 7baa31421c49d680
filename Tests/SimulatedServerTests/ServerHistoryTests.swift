import SimulatedServer
import Simulation
import Testing

/// The production's rings, turn by turn, between simulated disks and peers that speak bytes.
@Suite("The loop in the simulator")
struct ServerHistoryTests {
    @Test(
        "P1, P2, P5, P6: histories of whole rings, with storage that breaks and peers that misbehave"
    )
    func seeds() throws {
        for seed in 1...100 as ClosedRange<UInt64> {
            let world = try ServerWorld(StepList(seed: seed, count: 800))
            #expect(world.run() == nil, "seed \(seed)")
        }
    }
}
