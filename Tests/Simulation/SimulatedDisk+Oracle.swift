import Core
import Tracking
import TrackingFiles

/// What is known of a disk is compared with what the server says.
extension SimulatedDisk {
    func makeKnown(_ checkpoint: String) {
        guard let index = checkpoints.firstIndex(where: { $0.name == checkpoint }) else { return }
        checkpoints[index].isKnown = true
    }

    /// Blocks that an answer since the checkpoint must name: what was changed, and what differs.
    private func needed(_ model: CheckpointModel, _ content: [Stamp]) -> Set<Int> {
        var blocks = model.changed
        for index in content.indices {
            let before = index < model.content.count ? model.content[index] : 0
            if content[index] != before, source.shape.isInside(index) {
                blocks.insert(Int(source.shape.byte(at: index) >> Self.blockShift))
            }
        }
        return blocks
    }

    /// P3: a bitmap names everything that was changed since a checkpoint, and mostly nothing else.
    func check(
        _ answer: DirtyBitmap, since name: String, against content: [Stamp], _ what: String
    ) {
        guard let model = checkpoints.first(where: { $0.name == name }), model.isKnown,
            !model.isUnprovable
        else { return }
        let missed = needed(model, content).filter {
            $0 >= answer.blockCount || !answer.isDirty($0)
        }
        if let block = missed.min() {
            world.fail(
                "P3: disk \(number): \(what) since \(name) misses block \(block)"
                    + (model.changed.contains(block)
                        ? ", which was written" : ", which is not what it was"))
        }
        guard model.isExact else { return }
        var block = 0
        while let start = answer.firstBlock(from: block, dirty: true) {
            if !model.touched.contains(start) {
                world.fail("P3: disk \(number): \(what) since \(name) names block \(start)")
                return
            }
            block = start + 1
            if block >= answer.blockCount { return }
        }
    }

    /// Every checkpoint that can be used answers right.
    func checkAnswers() {
        let isSeen = seenLost == source.lostCount || world.canary == .ignoresLostWrites
        guard isServed, !isOwned, isSeen, let store, let recording else {
            return
        }
        let wereOn = world.faults.areOn
        world.faults.areOn = false
        defer { world.faults.areOn = wereOn }
        for model in checkpoints where model.isKnown {
            guard store.record.chain.checkpoints.contains(model.name),
                let answer = try? store.union(since: model.name, recording: recording.snapshot())
            else { continue }
            check(answer, since: model.name, against: source.sectors, "the answer")
        }
    }

    /// Checkpoints that an incremental backup can start from.
    var bases: [String] {
        guard let store else { return [] }
        return checkpoints.filter { model in
            model.isKnown && store.record.chain.checkpoints.contains(model.name)
        }.map(\.name)
    }

    // MARK: The end of a process

    /// What the next process can know of changes that nothing records.
    func noteEnd() {
        checkpoints.removeAll { !$0.isKnown }
        // A call in the middle may leave a layer of which nothing is known.
        if evidenceHasFailed || isOwned || !(recording?.isLive ?? false) { spoilExactness() }
        // Nobody has had the time to see it.
        if seenLost != source.lostCount { makeUnprovable() }
        // Guests that come back do not hear of it: the kernel tells no file that is opened later.
        answered = source.kept(answered)
        let outcome = doubt?.lastOutcome
        guard hasUnrecorded, outcome?.isDurable != true else { return }
        // Memory refuses everything, and the process is gone before anything else could be said.
        if outcome == nil, isLossUnderWay, !isSaidInMemory { return makeUnprovable() }
        guard wasTold else { return }
        if isSaidInMemory || outcome?.isSaid == true {
            isOnlyInMemory = true
        } else {
            makeUnprovable()
        }
    }

    /// No process can know any more that a checkpoint is not what it was.
    func makeUnprovable() {
        for index in checkpoints.indices { checkpoints[index].isUnprovable = true }
    }

    func losePower() {
        if isOnlyInMemory { makeUnprovable() }
        isOnlyInMemory = false
        spoilExactness()
        source.losePower(&world.draw)
        files.losePower(&world.draw)
        memory.forget()
        if !world.swarm.isFile { markText = nil }
        if let sector = source.brokenPromise {
            world.fail("P5: disk \(number): sector \(sector) has lost what a guest made durable")
        }
        answered = source.floors
    }
}
