import BoundedCalls
package import ServerInterface

/// Disks that are not served and should be are opened again, at the start and on demand, and nobody
/// waits long for a path that does not answer: its disk is served as soon as it does.
extension JobManager {
    /// A call waits so long for disks that are being opened, in milliseconds; then it goes on
    /// without.
    static let retryMilliseconds: Int32 = 2_000

    /// Attaches each disk that is not served and should be; failures are kept as reasons.
    func retryFailedDisks(of name: String) async {
        guard let domain = domains[name], !isStopping else { return }
        await open([domain], Self.retryMilliseconds)
    }

    /// The live exports of all disks that are to be opened.
    var exportsToOpen: Set<String> {
        Set(
            domains.values.flatMap { domain in
                failedDisks(of: domain).map {
                    domain.definition.liveExportName(target: $0.target)
                }
            })
    }

    /// Where jobs and disks of the last server will listen that are not there yet.
    package var awaitedSockets: Set<SocketPlace> {
        var places: Set<SocketPlace> = []
        for job in jobs.values {
            // One that is being begun has nothing to go on with yet.
            guard case .starting = job.state, let resume = job.record.resume?.value,
                let place = SocketPlace(resume.endpoint)
            else { continue }
            places.insert(place)
        }
        for domain in domains.values {
            for disk in failedDisks(of: domain) {
                guard let path = vhostSocket(of: disk, in: domain) else { continue }
                places.insert(SocketPlace(.nbd, path))
            }
        }
        return places
    }

    /// Begins to open the disks of all domains at once.
    func beginOpening() -> [Task<Void, Never>] { beginOpening(Array(domains.values)) }

    /// Waits for what `beginOpening` has begun; returns a line for each disk that is not served
    /// after that.
    func finishOpening(_ tasks: [Task<Void, Never>]) async -> [String] {
        await wait(for: tasks, of: Array(domains.values), settings.startMilliseconds)
        engine.expectDisks([])
        var warnings: [String] = []
        for domain in domains.values.sorted(by: { $0.definition.name < $1.definition.name }) {
            for disk in domain.definition.disks {
                guard case .failed(let reason) = domain.attachments[disk.target] else { continue }
                warnings.append(
                    "disk '\(disk.target)' of domain '\(domain.definition.name)': \(reason)")
            }
        }
        return warnings
    }

    /// Tries disks that could not be opened at the start again, until all are served: a machine
    /// that waits for its disk makes no call, and what is in the way may go in a moment, such as a
    /// lock of the server before that was killed.
    package func keepOpening() {
        retries?.cancel()
        retries = Task { [weak self] in
            // A killed server's direct I/O is over in a moment.
            var pause = Duration.milliseconds(50)
            while await self?.hasFailedDisks == true {
                try? await Task.sleep(for: pause)
                guard !Task.isCancelled else { return }
                await self?.openFailedDisks()
                pause = min(pause * 2, .seconds(10))
            }
        }
    }

    private var hasFailedDisks: Bool {
        !isStopping && !isLeaving && domains.values.contains { !failedDisks(of: $0).isEmpty }
    }

    private func openFailedDisks() async {
        guard !isStopping, !isLeaving else { return }
        await open(Array(domains.values), Self.retryMilliseconds)
    }

    private func failedDisks(of domain: ManagedDomain) -> [DomainDisk] {
        domain.definition.disks.filter { disk in
            guard disk.isServable, case .failed = domain.attachments[disk.target] else {
                return false
            }
            return reasonAside(disk, of: domain.definition) == nil
                && domain.reasonAway(disk) == nil
        }
    }

    private func open(_ domains: [ManagedDomain], _ milliseconds: Int32) async {
        await wait(for: beginOpening(domains), of: domains, milliseconds)
    }

    private func beginOpening(_ domains: [ManagedDomain]) -> [Task<Void, Never>] {
        var tasks: [Task<Void, Never>] = []
        for domain in domains {
            for disk in failedDisks(of: domain) {
                tasks.append(opening(disk, of: domain.definition))
            }
        }
        return tasks
    }

    private func wait(
        for tasks: [Task<Void, Never>], of domains: [ManagedDomain], _ milliseconds: Int32
    ) async {
        guard await !Patience.wait(for: tasks, milliseconds: milliseconds) else { return }
        for domain in domains {
            for disk in domain.definition.disks where isOpening(disk, of: domain.definition) {
                note(
                    failure: "'\(disk.path ?? "")' does not answer; the disk is served as soon as"
                        + " it does", of: disk, in: domain.definition.name)
            }
        }
    }

    private func isOpening(_ disk: DomainDisk, of definition: DomainDefinition) -> Bool {
        openings[openingKey(disk, of: definition)] != nil
    }

    /// Whether an attempt to open a disk is under way, of whatever source: it may have the disk's
    /// tracking, or be about to.
    func isOpening(_ target: String, of definition: DomainDefinition) -> Bool {
        let start = openingKey(target, of: definition)
        return openings.keys.contains { $0.hasPrefix(start) }
    }

    // An attempt at another source of the same disk is another one.
    private func openingKey(_ disk: DomainDisk, of definition: DomainDefinition) -> String {
        openingKey(disk.target, of: definition) + (disk.path ?? "")
    }

    private func openingKey(_ target: String, of definition: DomainDefinition) -> String {
        "\(definition.uuid) \(target) "
    }

    // One attempt at a time, which lasts as long as the storage takes: a second request joins it.
    private func opening(_ disk: DomainDisk, of definition: DomainDefinition) -> Task<Void, Never> {
        let key = openingKey(disk, of: definition)
        if let running = openings[key] { return running }
        let task = Task {
            await attach(disk, of: definition)
            openings[key] = nil
        }
        openings[key] = task
        return task
    }
}
