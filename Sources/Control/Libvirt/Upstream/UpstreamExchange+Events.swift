import LibvirtProtocol

/// Events: a client registers once and gets libvirtd's and ours.
///
/// Our registration takes the number that libvirtd has given the client's, so that no message needs
/// another number on its way.
extension UpstreamExchange {
    /// Registers with libvirtd, then here, before any event that libvirtd sends for it is passed
    /// on.
    func registerCallback() async -> Packet? {
        var arguments = call.arguments
        guard let event = try? arguments.int() else { return await theirs(seconds: nil) }
        // Its form has been checked: what cannot be read is not there.
        let uuid = (try? arguments.optionalDomain()).map { UUIDText.text($0.uuid) }
        guard session.hasRoomForRegistrations else {
            return failure(.tooManyRegistrations)
        }
        let exchange = self
        await connection.callInOrder(procedure, call.packet.body) { reply in
            let answer = exchange.packet(reply)
            if answer.error == nil {
                var reader = XDRReader(answer.body)
                if let number = try? reader.int() {
                    _ = exchange.session.register(
                        event: event, uuid: uuid, isLegacy: false, number: number)
                }
            }
            await exchange.session.deliver(answer)
        }
        return nil
    }

    /// What libvirtd has agreed to is done here as well.
    func bothForEvents() async -> Packet {
        let theirs = await theirs(seconds: nil)
        if theirs.error == nil { _ = await ours() }
        return theirs
    }
}
