import Control
import Foundation
import Testing

@Suite struct CheckpointTextTests {
    private static func view(_ name: String, _ parent: String?) -> CheckpointView {
        CheckpointView(
            name: name, domain: "vm1", parent: parent,
            creationTime: Date(timeIntervalSince1970: 1_525_889_631), children: 1,
            descendants: 2, current: false, disks: [])
    }

    private static let views = [
        view("c1", nil), view("c2", "c1"), view("c4", "c2"), view("c3", "c1"), view("d", nil),
    ]

    @Test func listsLookAsVirshPrintsThem() {
        let two = Array(Self.views.prefix(2))
        #expect(
            ConsoleText.checkpoints(two, parents: false, quiet: false) == """
                 Name   Creation Time
                -----------------------------------
                 c1     2018-05-09 18:13:51 +0000
                 c2     2018-05-09 18:13:51 +0000


                """)
        #expect(
            ConsoleText.checkpoints(two, parents: true, quiet: true)
                == " c1   2018-05-09 18:13:51 +0000\n c2   2018-05-09 18:13:51 +0000   c1\n")
        #expect(ConsoleText.checkpointNames(two) == "c1\nc2\n")
    }

    @Test func treesLookAsVirshPrintsThem() {
        #expect(
            ConsoleText.checkpointTree(Self.views) == """
                c1
                  |
                  +- c2
                  |   |
                  |   +- c4
                  |
                  +- c3

                d


                """)
        #expect(
            ConsoleText.checkpointTree(Array(Self.views[2...2]), root: "c2") == """
                c2
                  |
                  +- c4


                """)
    }

    @Test func infoHasItsValuesAtColumnSixteen() {
        #expect(
            ConsoleText.checkpointInfo(Self.view("c1", nil)) == """
                Name:           c1
                Domain:         vm1
                Parent:         -
                Children:       1
                Descendants:    2

                """)
    }

    @Test func disksShowTheirCheckpoints() {
        var disk = DiskView(
            disk: "vda", source: "/img/a", type: "file", device: "disk", readOnly: false)
        disk.checkpoints = ["c1", "c2"]
        disk.recoveredBytes = 4096
        disk.trackingProblem = "torn"
        let text = ConsoleText.disks([disk], details: true, quiet: false)
        #expect(text.contains("Checkpoints:   c1, c2\n"))
        #expect(text.contains("Recovered:     4 KiB count as changed, after an unclean stop\n"))
        #expect(text.contains("Tracking Problem: torn\n"))
        #expect(!ConsoleText.disks([disk], details: false, quiet: false).contains("torn"))
    }
}
