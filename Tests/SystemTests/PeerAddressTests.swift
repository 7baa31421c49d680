import Disk
import SystemLayer
import Testing

@Suite("Peers")
struct PeerAddressTests {
    private func v6(_ words: [UInt16]) -> PeerAddress {
        PeerAddress(v6: words.flatMap { [UInt8($0 >> 8), UInt8($0 & 0xFF)] })
    }

    @Test("CVE-2013-6410: addresses are compared as numbers, never as texts that begin alike")
    func wholeAddresses() {
        let peers = [
            PeerAddress(v4: [10, 0, 0, 1]), PeerAddress(v4: [10, 0, 0, 10]),
            PeerAddress(v4: [10, 0, 0, 100]), PeerAddress(v4: [110, 0, 0, 1]),
            v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]), v6([0x2001, 0xdb8, 0, 1, 0, 0, 0, 1]),
            v6([0, 0, 0, 0, 0, 0, 0, 1]),
        ]
        #expect(Set(peers).count == peers.count)
    }

    @Test("one peer is one peer: IPv4 in IPv6, and all addresses of a /64")
    func samePeer() {
        #expect(
            v6([0, 0, 0, 0, 0, 0xFFFF, 0x0A00, 0x0001]) == PeerAddress(v4: [10, 0, 0, 1]))
        #expect(
            v6([0x2001, 0xdb8, 0, 1, 1, 2, 3, 4]) == v6([0x2001, 0xdb8, 0, 1, 9, 9, 9, 9]))
    }

    @Test("CVE-2023-5215: no size that a client would take for a negative number is served")
    func sizes() {
        #expect(RawSource.sizeBytesMax < 1 << 63)
    }
}
