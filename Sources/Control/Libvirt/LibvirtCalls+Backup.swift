import LibvirtProtocol

/// Backup jobs begin, and are described.
extension LibvirtCalls {
    /// Flags of a backup's begin (`virDomainBackupBeginFlags`).
    enum BackupBegin {
        /// Scratch is there already, and stays.
        static let reuseExternal: UInt32 = 1
        /// The job outlives the machine: here every job does.
        static let preserveShutdown: UInt32 = 2
    }

    static let backups: [Procedure: LibvirtHandler] = [
        .domainBackupBegin: { call in
            let domain = try await call.domain()
            let backupXML = try call.arguments.string()
            let checkpointXML = try call.arguments.optionalString()
            let flags = try call.flags(
                BackupBegin.reuseExternal | BackupBegin.preserveShutdown,
                function: "qemuBackupBegin")
            call.session.noteBackup(of: domain.definition.uuid)
            let begun = try await call.manager.begin(
                domain: domain.name,
                BeginRequest(
                    backupXML: backupXML, checkpointXML: checkpointXML,
                    reuseExternal: flags & BackupBegin.reuseExternal != 0))
            call.session.noteBegun(job: begun.id)
            call.context.begunJobs.note(begun.id, of: domain.name, by: call.session)
            return nothing
        },
        .domainBackupGetXMLDesc: { call in
            let domain = try await call.domain()
            _ = try call.flags(function: "qemuBackupGetXMLDesc")
            guard let job = await call.job(of: domain) else { throw ControlError.noJob }
            let body = try await call.manager.backupXML(domain: domain.name, job: job)
            return reply { $0.string(body.xml) }
        },
    ]
}
