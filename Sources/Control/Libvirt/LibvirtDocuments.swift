/// XML that tells clients what there is.
enum LibvirtDocuments {
    /// The host, and no guests that could be created: machines are run by others.
    static func capabilities(_ host: HostFacts) -> String {
        var writer = XMLWriter()
        writer.element("capabilities", []) { root in
            root.element("host", []) { element in
                if let uuid = host.uuid { element.leaf("uuid", text: uuid) }
                element.element("cpu", []) { $0.leaf("arch", text: host.architecture) }
            }
        }
        return writer.text
    }

    /// What domains may have: backups.
    static func domainCapabilities(_ host: HostFacts) -> String {
        var writer = XMLWriter()
        writer.element("domainCapabilities", []) { root in
            root.leaf("path", text: "/usr/bin/qemu-system-\(host.architecture)")
            root.leaf("domain", text: "kvm")
            root.leaf("arch", text: host.architecture)
            root.element("features", []) { $0.empty("backup", [("supported", "yes")]) }
        }
        return writer.text
    }
}
