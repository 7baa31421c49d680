import IORing
import SharedMemory
import SystemLayer
import Tables
import VhostProtocol

/// What messages of a front-end make the ring do: memory is mapped, queues start and stop.
extension RingLoop where IO: ~Copyable {
    /// Carries an action out; what it takes of the descriptors becomes -1.
    mutating func perform(
        _ action: SessionAction, _ slot: ConnectionIndex, _ vhost: VhostIndex,
        _ descriptors: inout [Int32]
    ) -> ActionOutcome {
        switch action {
        case .changeMemory(let added, let removed):
            guard added.isEmpty || claimDisk(slot, vhost) else { return .done }
            return changeMemory(slot, vhost, added, removed, descriptors)
        case .changeQueue(let index, let change):
            return changeQueue(slot, vhost, index, change, &descriptors)
        case .stopQueue(let index): return .stopped(next: stopQueue(vhost, index))
        case .reset(let indices):
            for index in indices { _ = stopQueue(vhost, index) }
            return .done
        case .makeInflight(let byteCount):
            do throws(SystemFault) {
                vhosts[vhost].madeArea = try FixedMemory.make(byteCount: byteCount).giveAway()
                return .done
            } catch {
                return .failed(
                    "an area of \(byteCount) bytes cannot be made: \(error.call):"
                        + " \(error.errorText)")
            }
        case .useInflight(let area): return useArea(vhost, area, descriptors)
        }
    }

    private mutating func useArea(
        _ vhost: VhostIndex, _ area: InflightArea, _ descriptors: [Int32]
    ) -> ActionOutcome {
        guard let descriptor = descriptors.first else { return .failed("it has no descriptor") }
        var wish = MappingBudget.Wish()
        if let old = vhosts[vhost].area { wish.has(old.byteCount, stays: false) }
        wish.wants(area.byteCount)
        do throws(MappingRefusal) {
            try shared.guestMemory.take(wish)
            let new = try GuestMapping(
                descriptor: descriptor, offset: area.fileOffset, byteCount: area.byteCount,
                isFixed: true, budget: shared.guestMemory)
            if let old = vhosts[vhost].area { vhosts[vhost].export.unmapper.unmap([old]) }
            vhosts[vhost].area = new
            return .done
        } catch { return .failed("an area of \(area.byteCount) bytes: \(error.text)") }
    }

    // MARK: Memory

    private mutating func changeMemory(
        _ slot: ConnectionIndex, _ vhost: VhostIndex, _ added: [MappedRegion],
        _ removed: [MemorySlot], _ descriptors: [Int32]
    ) -> ActionOutcome {
        do throws(MappingRefusal) {
            try shared.guestMemory.take(
                vhosts[vhost].memory.wish(adding: added, removing: removed))
        } catch {
            return .failed(error.text)
        }
        var mapped: [(region: MappedRegion, mapping: GuestMapping)] = []
        for region in added {
            do throws(MappingRefusal) {
                let mapping = try GuestMapping(
                    descriptor: descriptors[region.descriptor], offset: region.region.fileOffset,
                    byteCount: region.region.byteCount, budget: shared.guestMemory)
                mapped.append((region, mapping))
            } catch {
                for unmapped in added.dropFirst(mapped.count + 1) {
                    shared.guestMemory.give(unmapped.region.byteCount)
                }
                return .failed("memory \(region.region.text): \(error.text)")
            }
        }
        vhosts[vhost].export.unmapper.unmap(
            vhosts[vhost].memory.change(added: mapped, removed: removed))
        for queue in vhosts[vhost].running {
            guard let ring = vhosts[vhost].queues[queue].ring,
                let addresses = vhosts[vhost].queues[queue].addresses
            else { continue }
            do throws(VirtqueueFault) {
                try vhosts[vhost].relocate(ring, addresses)
            } catch {
                // The session has kept their addresses in memory.
                refuse(slot, vhost, "queue \(queue): \(error.text)")
            }
        }
        return .done
    }

    // MARK: Queues

    private mutating func changeQueue(
        _ slot: ConnectionIndex, _ vhost: VhostIndex, _ index: Int, _ change: QueueChange,
        _ descriptors: inout [Int32]
    ) -> ActionOutcome {
        switch change {
        case .start(let setup):
            guard let kick = takeEvent(&descriptors) else { return .noEvent(index) }
            replace(\.kick, kick, vhost, index)
            start(slot, vhost, index, setup)
        case .setKick:
            guard let kick = takeEvent(&descriptors) else { return .noEvent(index) }
            replace(\.kick, kick, vhost, index)
            disarm(vhost, index)
            arm(vhost, index)
        case .setCall(let isPresent): return setCall(vhost, index, isPresent, &descriptors)
        case .setError(let isPresent):
            let error = isPresent ? takeEvent(&descriptors) : nil
            guard (error != nil) == isPresent else { return .noEvent(index) }
            replace(\.error, error, vhost, index)
        case .pause: vhosts[vhost].queues[index].isEnabled = false
        case .resume: vhosts[vhost].queues[index].isEnabled = true
        }
        return .done
    }

    private mutating func setCall(
        _ vhost: VhostIndex, _ index: Int, _ isPresent: Bool, _ descriptors: inout [Int32]
    ) -> ActionOutcome {
        guard isPresent else {
            endCall(vhost, index)
            return .done
        }
        guard let event = takeEvent(&descriptors) else { return .noEvent(index) }
        // What calls has taken it, or it is of no use.
        defer { closeDescriptors([event.number], vhosts[vhost].export.closer) }
        do throws(SystemFault) {
            vhosts[vhost].queues[index].call = try io.makeCall(
                event, replacing: vhosts[vhost].queues[index].call)
        } catch {
            return .failed(
                "queue \(index) cannot be called: \(error.call): \(error.errorText)")
        }
        // The last call may have gone to another event.
        call(vhost, index)
        return .done
    }

    private mutating func takeEvent(_ descriptors: inout [Int32]) -> EventHandle? {
        guard let first = descriptors.first, first >= 0, let event = io.event(first) else {
            return nil
        }
        descriptors[0] = -1
        return event
    }

    private mutating func replace(
        _ place: WritableKeyPath<VhostQueue, EventHandle?>, _ event: EventHandle?,
        _ vhost: VhostIndex, _ index: Int
    ) {
        let old = vhosts[vhost].queues[index][keyPath: place]
        vhosts[vhost].queues[index][keyPath: place] = event
        if let old { closeDescriptors([old.number], vhosts[vhost].export.closer) }
    }

    private mutating func start(
        _ slot: ConnectionIndex, _ vhost: VhostIndex, _ index: Int, _ setup: QueueSetup
    ) {
        vhosts[vhost].queues[index].isEnabled = setup.isEnabled
        vhosts[vhost].queues[index].addresses = setup.rings
        vhosts[vhost].queues[index].stoppedAt = setup.base
        if !vhosts[vhost].running.contains(index) { vhosts[vhost].running.append(index) }
        if setup.inflightOffset == nil, !vhosts[vhost].hasSaidUnsafe {
            vhosts[vhost].hasSaidUnsafe = true
            report(
                vhost,
                "its front-end keeps no in-flight area: requests that are in flight when this"
                    + " server is killed may be lost")
        }
        do throws(VirtqueueFault) {
            try vhosts[vhost].start(index, setup)
        } catch {
            if checkMemory(slot, vhost) {
                report(vhost, "queue \(index) cannot start: \(error.text)")
            }
            return
        }
        guard checkMemory(slot, vhost) else { return }
        arm(vhost, index)
    }

    /// Stops a queue of which nothing is in flight; returns the next available index.
    private mutating func stopQueue(_ vhost: VhostIndex, _ index: Int) -> UInt16 {
        answerNow(vhost, index)
        let next = vhosts[vhost].stop(index)
        disarm(vhost, index)
        let queue = vhosts[vhost].queues[index]
        closeDescriptors(
            [queue.kick, queue.error].compactMap { $0?.number },
            vhosts[vhost].export.closer)
        vhosts[vhost].queues[index].kick = nil
        endCall(vhost, index)
        vhosts[vhost].queues[index].error = nil
        return next
    }

    /// The kernel waits no longer for the kick at hand; `kicked` follows.
    private mutating func disarm(_ vhost: VhostIndex, _ index: Int) {
        guard vhosts[vhost].queues[index].isArmed else { return }
        io.prepareCancel(Operation.kick(vhost, queue: index).tag, tag: Operation.ignored.tag)
    }
}

extension ActionOutcome {
    /// A queue's descriptor is of the wrong kind.
    fileprivate static func noEvent(_ queue: Int) -> ActionOutcome {
        .failed("the descriptor for queue \(queue) is no eventfd")
    }
}

extension VhostSession {
    fileprivate mutating func relocate(
        _ ring: VirtqueueIndex, _ addresses: RingAddresses
    ) throws(VirtqueueFault) {
        try rings[ring].relocate(memory, addresses)
    }

    /// Starts a queue; on a fault it counts as started and takes nothing.
    fileprivate mutating func start(_ index: Int, _ setup: QueueSetup) throws(VirtqueueFault) {
        let inflight = setup.inflightOffset.flatMap { offset in
            area.map { $0.place.advanced(by: offset) }
        }
        queues[index].ring = rings.insert(try Virtqueue(memory, setup, inflight: inflight))
    }

    /// Stops a queue; returns the next available index.
    fileprivate mutating func stop(_ index: Int) -> UInt16 {
        running.removeAll { $0 == index }
        nextQueue = 0
        queues[index].addresses = nil
        guard let ring = queues[index].ring else { return queues[index].stoppedAt }
        queues[index].ring = nil
        return rings.remove(ring).nextAvailable
    }
}
