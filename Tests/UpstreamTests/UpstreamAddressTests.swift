import ServerInterface
import Testing

@Suite("Addresses of upstreams")
struct UpstreamAddressTests {
    @Test(
        "An address is read, and written the same",
        arguments: [
            "nbd://host/", "nbd://host:10/disk", "nbd://[::1]:10810/a/b", "nbd+unix:///?socket=/s",
            "nbd+unix:///a%20b%3F?socket=/run/x%26y",
            "nbds://host/x?tls-certificates=/etc/pki", "nbds://me%40here@host/?tls-psk-file=/k",
            "nbds+unix://me@/n?socket=/s&tls-psk-file=/k",
        ])
    func reads(_ uri: String) throws {
        #expect(try UpstreamAddress(uri: uri).uri == uri)
    }

    @Test("The parts are what they say")
    func parts() throws {
        let unix = try UpstreamAddress(uri: "nbd+unix:///a%2Fb?socket=/run/s.sock")
        #expect(unix.place == .unix(path: "/run/s.sock") && unix.name == "a/b")
        let tcp = try UpstreamAddress(uri: "nbd://h")
        #expect(tcp.place == .tcp(host: "h", port: 10809) && tcp.name.isEmpty)
        #expect(try UpstreamAddress(uri: "nbd://h:10809/").uri == "nbd://h/")
    }

    @Test("The same export is the same place, however its host and its security are written")
    func places() throws {
        let place = try UpstreamAddress(uri: "nbd://store/Disk").placeText
        for uri in [
            "nbd://Store:10809/Disk", "nbds://me@STORE/Disk?tls-psk-file=/k",
            "nbds://store/Disk?tls-certificates=/etc/pki",
        ] {
            #expect(try UpstreamAddress(uri: uri).placeText == place)
        }
        for uri in ["nbd://store/disk", "nbd://store:1/Disk", "nbd+unix:///Disk?socket=/store"] {
            #expect(try UpstreamAddress(uri: uri).placeText != place)
        }
    }

    @Test(
        "What is no address is refused with its reason",
        arguments: [
            ("nbd+unix:///x", "socket"), ("nbd+unix:///x?socket=rel", "absolute"),
            ("nbd://h:0/", "port"), ("nbd://h:99999/", "port"), ("nbd:///x", "host"),
            ("nbd://h/%zz", "hexadecimal"), ("nbd://h/%00", "hexadecimal"),
            ("nbd://h/x?foo=1", "foo"), ("nbd://h/?socket=/s", "nbd+unix"),
            ("nbd://h/?tls-psk-file=/k", "nbds"), ("nbd://[::1/", "]"), ("nbd://h/%FF", "UTF-8"),
            ("nbds://h/?tls-psk-file=/k&tls-certificates=/d", "one of them"),
            ("nbds://h/x", "tls-certificates"), ("nbds+unix:///?socket=/s", "tls-certificates"),
            ("nbds+unix:///?socket=/s&tls-certificates=/d", "no name"),
            ("nbd+vsock://1/", "nbd+vsock"), ("nbd://h/x#y", "#"),
            ("nbd+unix:///?socket=/" + String(repeating: "x", count: 107), "108 bytes"),
        ])
    func refuses(_ uri: String, _ word: String) {
        #expect {
            _ = try UpstreamAddress(uri: uri)
        } throws: { error in
            ((error as? UpstreamAddressFault)?.detail ?? "").contains(word)
        }
    }
}
