import LibvirtProtocol

/// A job's figures in libvirt's terms.
extension JobInfo {
    /// The type's number (`virDomainJobType`).
    var typeNumber: Int32 {
        switch jobType {
        case "Unbounded": 2
        case "Completed": 3
        case "Failed": 4
        case "Cancelled": 5
        default: 0
        }
    }

    /// What `virDomainGetJobStats` gives, in the order of libvirt's own; nothing of no job.
    var parameters: [TypedParameter] {
        guard operation != nil else { return [] }
        // Operation 9 is a backup.
        var list = [
            TypedParameter("operation", .int(9)),
            TypedParameter("time_elapsed", .uhyper(timeElapsed ?? 0)),
        ]
        if let total = bytesToRead {
            list += [
                TypedParameter("disk_total", .uhyper(total)),
                TypedParameter("disk_processed", .uhyper(total - bytesRemaining)),
                TypedParameter("disk_remaining", .uhyper(bytesRemaining)),
            ]
        }
        if let tempUsed { list.append(TypedParameter("disk_temp_used", .uhyper(tempUsed))) }
        if let tempTotal { list.append(TypedParameter("disk_temp_total", .uhyper(tempTotal))) }
        if let success { list.append(TypedParameter("success", .bool(success))) }
        if let errorMessage { list.append(TypedParameter("errmsg", .string(errorMessage))) }
        return list
    }

    /// What `virDomainGetJobInfo` gives behind the type: times, then of all data, of memory and of
    /// files what there is, what is done, and what is left.
    var figures: [UInt64] {
        guard typeNumber != 0 else { return [UInt64](repeating: 0, count: 11) }
        let total = bytesToRead ?? 0
        let files = [total, total - bytesRemaining, bytesRemaining]
        return [timeElapsed ?? 0, 0] + files + [0, 0, 0] + files
    }

    private var bytesRemaining: UInt64 {
        let total = bytesToRead ?? 0
        return total - min(bytesRead ?? 0, total)
    }
}
