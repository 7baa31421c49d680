/// A disk as a test's domain has it.
package struct DiskDescription: Sendable {
    /// How the page cache is used; the raw values are those of `<driver cache=>`.
    package enum Cache: String, Sendable {
        case direct = "none"
        case buffered = "writeback"
    }

    package var target: String
    package var path: String
    package var isBlockDevice = false
    package var cache = Cache.buffered
    package var discards = true
    package var isReadOnly = false
    /// The socket by which the machine has the disk with vhost-user.
    package var vhostSocket: String?
    /// The image's format, and the raw file that a qcow2 image builds on.
    package var format = "raw"
    package var backing: String?
    /// The socket of the upstream that serves `path`.
    package var upstreamSocket: String?

    package init(_ target: String, _ path: String) {
        self.target = target
        self.path = path
    }

    /// Makes it a block device over its file, used without the page cache; it is one as long as
    /// what is returned lives.
    package mutating func becomeDevice() throws -> LoopDevice {
        let loop = try LoopDevice(over: path)
        path = loop.path
        isBlockDevice = true
        cache = .direct
        return loop
    }

    /// The image of a Ceph cluster that has the bytes, and the cluster's configuration.
    package var rbd: (image: String, configuration: String)?

    private var backingXML: String {
        guard let backing else { return "" }
        return """
            <backingStore type='file'>
              <format type='raw'/><source file='\(backing)'/><backingStore/>
            </backingStore>
            """
    }

    /// Makes it a qcow2 image that builds on its file.
    package mutating func becomeOverlay() throws {
        let image = path + ".qcow2"
        try Command.run(
            "qemu-img", ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", path, image]
        ).output()
        backing = path
        path = image
        format = "qcow2"
    }

    /// The disk as hypervisor and server read it.
    package var xml: String {
        let type = isBlockDevice ? "block" : "file"
        let attribute = isBlockDevice ? "dev" : "file"
        if let vhostSocket {
            return """
                    <disk type='vhostuser' device='disk' snapshot='no'>
                      <driver name='qemu' type='raw'/>
                      <source type='unix' path='\(vhostSocket)'>
                        <reconnect enabled='yes' timeout='1'/>
                      </source>
                      <source xmlns='urn:nbdpull:disk:1' \(attribute)='\(path)'/>
                      <target dev='\(target)' bus='virtio'/>
                    </disk>
                """
        }
        if let upstreamSocket {
            return """
                    <disk type='network' device='disk'>
                      <driver name='qemu' type='raw' discard='\(discards ? "unmap" : "ignore")'/>
                      <source protocol='nbd' name=''>
                        <host transport='unix' socket='\(upstreamSocket)'/>
                      </source>
                      <target dev='\(target)' bus='virtio'/>
                      \(isReadOnly ? "<readonly/>" : "")
                    </disk>
                """
        }
        if let rbd {
            return """
                    <disk type='network' device='disk'>
                      <driver name='qemu' type='raw' cache='\(cache.rawValue)'
                        discard='\(discards ? "unmap" : "ignore")'/>
                      <source protocol='rbd' name='rbd/\(rbd.image)'>
                        <config file='\(rbd.configuration)'/>
                      </source>
                      <target dev='\(target)' bus='virtio'/>
                    </disk>
                """
        }
        let discard = discards ? "unmap" : "ignore"
        return """
                <disk type='\(type)' device='disk'>
                  <driver name='qemu' type='\(format)' cache='\(cache.rawValue)'
                    discard='\(discard)'/>
                  <source \(attribute)='\(path)'/>
                  \(backingXML)
                  <target dev='\(target)' bus='virtio'/>
                  \(isReadOnly ? "<readonly/>" : "")
                </disk>
            """
    }
}

/// A domain as a test defines it.
package struct DomainDescription: Sendable {
    package var name: String
    package var disks: [DiskDescription]
    package var uuid: String?

    package init(_ name: String, _ disks: [DiskDescription], uuid: String? = nil) {
        self.name = name
        self.disks = disks
        self.uuid = uuid
    }

    package var xml: String {
        """
        <domain type='kvm'>
          <name>\(name)</name>
          \(uuid.map { "<uuid>\($0)</uuid>" } ?? "")
          <memory unit='MiB'>256</memory>
          <os><type arch='x86_64'>hvm</type></os>
          <devices>
        \(disks.map(\.xml).joined(separator: "\n"))
          </devices>
        </domain>

        """
    }
}

/// One disk's part in a backup as a test asks for it.
package struct BackupDiskDescription: Sendable {
    package var target: String
    package var scratch: String
    package var scratchIsBlockDevice = false
    /// The socket of the server that takes the scratch, or its TCP port on this host, by one of
    /// its names; the export's name there, and a file with `alice`'s key where it wants TLS.
    package var scratchUpstream: String?
    package var scratchPort: Int?
    package var scratchHost = "localhost"
    package var scratchExport = ""
    package var scratchKeys: String?
    /// The image of a Ceph cluster that takes it, and the cluster's configuration.
    package var scratchImage: (image: String, configuration: String)?
    /// A checkpoint for this disk alone.
    package var incremental: String?

    package init(_ target: String, scratch: String) {
        self.target = target
        self.scratch = scratch
    }

    /// `<scratch>` of a network disk; nil of others.
    private var networkXML: String? {
        if let scratchImage {
            return """
                <scratch protocol='rbd' name='rbd/\(scratchImage.image)'>
                  <config file='\(scratchImage.configuration)'/>
                </scratch>
                """
        }
        let host: String
        if let scratchUpstream {
            host = "<host transport='unix' socket='\(scratchUpstream)'/>"
        } else if let scratchPort {
            host = "<host name='\(scratchHost)' port='\(scratchPort)'/>"
        } else {
            return nil
        }
        let keys = scratchKeys.map {
            "<credentials xmlns='urn:nbdpull:disk:1' psk='\($0)' user='alice'/>"
        }
        return """
            <scratch protocol='nbd' name='\(scratchExport)' tls='\(keys == nil ? "no" : "yes")'>
              \(host)
              \(keys ?? "")
            </scratch>
            """
    }

    var xml: String {
        let type = scratchIsBlockDevice ? "block" : "file"
        let attribute = scratchIsBlockDevice ? "dev" : "file"
        let mode = incremental.map { " backupmode='incremental' incremental='\($0)'" } ?? ""
        if let networkXML {
            return """
                    <disk name='\(target)' backup='yes' type='network'\(mode)>
                      \(networkXML)
                    </disk>
                """
        }
        return """
                <disk name='\(target)' backup='yes' type='\(type)'\(mode)>
                  <scratch \(attribute)='\(scratch)'/>
                </disk>
            """
    }
}

/// A `<domainbackup>` as a test asks for it.
package struct BackupDescription: Sendable {
    /// Where the job listens.
    package enum Endpoint: Sendable {
        case unix(String)
        case tcp(Int)
    }

    package var endpoint: Endpoint
    package var disks: [BackupDiskDescription]
    package var incremental: String?
    /// The `tls` attribute, `yes` or `no`.
    package var tls: String?
    /// The address of a TCP endpoint.
    package var host = "127.0.0.1"

    package init(_ endpoint: Endpoint, _ disks: [BackupDiskDescription]) {
        self.endpoint = endpoint
        self.disks = disks
    }

    package var xml: String {
        let tls = tls.map { " tls='\($0)'" } ?? ""
        let server =
            switch endpoint {
            case .unix(let path): "<server transport='unix'\(tls) socket='\(path)'/>"
            case .tcp(let port):
                "<server transport='tcp'\(tls) name='\(host)' port='\(port)'/>"
            }
        return """
            <domainbackup mode='pull'>
              \(incremental.map { "<incremental>\($0)</incremental>" } ?? "")
              \(server)
              <disks>
            \(disks.map(\.xml).joined(separator: "\n"))
              </disks>
            </domainbackup>

            """
    }
}

/// A `<domaincheckpoint>` of a name.
package func checkpointXML(_ name: String) -> String {
    "<domaincheckpoint><name>\(name)</name></domaincheckpoint>\n"
}
