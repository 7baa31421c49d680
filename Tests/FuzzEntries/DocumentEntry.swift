import Control
import ServerInterface

/// XML from strangers: refused with an error, or read into something that is fit to use.
enum DocumentEntry {
    /// The first byte chooses the kind of document, the rest is its text.
    static func run(_ bytes: [UInt8]) {
        guard let kind = bytes.first else { return }
        let text = String(decoding: bytes.dropFirst(), as: UTF8.self)
        do throws(ControlError) {
            switch kind % 3 {
            case 0: try backup(text)
            case 1: _ = try CheckpointRequest.parse(text)
            default: try domain(text)
            }
        } catch {
            precondition(!error.message.utf8.contains(0), "an error text with a zero byte")
        }
    }

    private static func backup(_ text: String) throws(ControlError) {
        let request = try BackupRequest.parse(text)
        if case .unix(let path, _) = request.endpoint {
            precondition(path.utf8.count <= BackupRequest.socketPathBytesMax)
        }
    }

    /// A domain that is accepted is printed in a form that is accepted again.
    private static func domain(_ text: String) throws(ControlError) {
        let definition = try DomainDefinition.parse(text)
        precondition(definition.disks.count <= DomainDefinition.disksMax)
        do throws(ControlError) {
            let again = try DomainDefinition.parse(definition.xml)
            precondition(again.name == definition.name && again.disks == definition.disks)
        } catch {
            preconditionFailure("a domain's own XML is refused: \(error.message)")
        }
    }
}
