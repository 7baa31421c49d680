import ArgumentParser

/// The door for libvirt's clients.
struct LibvirtOptions: ParsableArguments {
    @Flag(help: "Do not listen for libvirt's clients (RUN-DIR/libvirt-sock).") var noLibvirt = false
    @Option(help: "Mode of the socket for libvirt's clients, octal. (default: 0600)")
    var libvirtSocketMode: String?
    @Option(help: "Group of the socket for libvirt's clients, by name or number.")
    var libvirtSocketGroup: String?
    @Option(help: "Socket of the libvirtd that runs the machines; merges its answers.")
    var libvirtUpstream: String?
    @Option(help: "URI to open it with. (default: the client's, or libvirtd's choice)")
    var libvirtUpstreamUri: String?
}
