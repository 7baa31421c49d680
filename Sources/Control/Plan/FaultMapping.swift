package import ServerInterface

/// Says in the terms of the control interface why the server could not do what it was asked.
///
/// Numbers follow libvirt where it knows the condition.
package func controlError(from fault: ServerFault) -> ControlError {
    switch fault {
    case .sourceUnusable(let path, let detail):
        ControlError(
            .systemError, code: "source-unusable", status: 422,
            detail: "cannot use source '\(path)': \(detail)")
    case .sourceLocked(let path, let detail):
        ControlError(
            .operationInvalid, code: "source-locked", status: 409,
            detail: "source '\(path)' is in use by another process: \(detail)")
    case .sourceServed(let path, let export):
        .sourceServed(path, as: "export '\(export)'")
    case .exportNameTaken(let name):
        .exportNameTaken(name)
    case .unknownDisk:
        ControlError(
            .internalError, code: "disk-not-attached", status: 500,
            detail: "the disk is not attached to the server")
    case .diskBusy(let name):
        ControlError(
            .operationInvalid, code: "disk-busy", status: 409,
            detail: "disk '\(name)' is still in use: requests or a job on it have not ended")
    case .diskInUse(let name, let clients):
        .diskInUse(name, clients: clients)
    case .resizeRefused(let name, let detail):
        ControlError(
            .operationInvalid, code: "resize-refused", status: 409,
            detail: "disk '\(name)' cannot be resized: \(detail)")
    case .checkpointUnusable(let checkpoint, let target, _):
        .checkpointUnusable(checkpoint, disk: target)
    case .checkpointExists(let checkpoint, let export):
        ControlError(
            .operationFailed, code: "checkpoint-exists", status: 409,
            detail: "disk '\(export)' already holds a checkpoint '\(checkpoint)'")
    case .notTracked(let export, let detail):
        ControlError(
            .unsupportedConfiguration, code: "disk-not-tracked", status: 422,
            detail: "changes of disk '\(export)' are not tracked: \(detail)")
    case .scratchExists(let path, let target):
        .scratchExists(path: path, disk: target)
    case .scratchNotCreated(let path, let errorText):
        .scratchNotCreated(path: path, errorText: errorText)
    case .scratchUnusable(let path, let detail):
        ControlError(
            .internalError, code: "scratch-unusable", status: 422,
            detail: "cannot use scratch '\(path)': \(detail)")
    case .cannotListen(let endpoint, let errorText):
        ControlError(
            .internalError, code: "cannot-listen", status: 409,
            detail: "cannot listen on \(endpoint): \(errorText)")
    case .unknownJob(let id):
        .jobNotFound(id)
    case .jobNotResumed(let detail):
        // It is the reason why the job failed, so it goes where such reasons go.
        ControlError(
            code: "job-not-resumed", libvirtCode: 9, message: detail, httpStatus: 409)
    case .holdTimedOut(let milliseconds):
        ControlError(
            .operationTimeout, code: "hold-timed-out", status: 500,
            detail: "guest writes in flight did not finish within \(milliseconds) ms, try again")
    case .limitReached(let what, let limit):
        ControlError(
            .operationInvalid, code: "limit-reached", status: 409,
            detail: "no more than \(limit) \(what)")
    case .shuttingDown:
        ControlError(
            .operationInvalid, code: "shutting-down", status: 500,
            detail: "the server is shutting down")
    case .givenUp:
        // Who gives a begin up has a better reason to tell.
        .internalError("the begin was given up before its instant")
    case .cannotLeave(let detail):
        ControlError(
            .operationInvalid, code: "cannot-leave", status: 409, detail: detail)
    case .timedOut(let what, let milliseconds):
        ControlError(
            .operationTimeout, code: "storage-timed-out", status: 504,
            detail: "\(what) has not answered within \(milliseconds / 1000) s: the call is given"
                + " up")
    case .storageStuck(let what, let calls):
        ControlError(
            .operationTimeout, code: "storage-stuck", status: 503,
            detail: "\(calls) calls wait for \(what) already: see to it that it answers")
    case .disksTaken(let milliseconds):
        ControlError(
            .operationTimeout, code: "disks-taken", status: 503,
            detail: "another call on the same disks has not ended within \(milliseconds / 1000) s")
    case .ringStuck(let milliseconds):
        ControlError(
            .operationTimeout, code: "ring-stuck", status: 500,
            detail: "a thread of the server has not answered within \(milliseconds / 1000) s")
    case .securityUnusable(let detail):
        ControlError(
            .systemError, code: "security-unusable", status: 422, detail: detail)
    case .tlsNotConfigured: .tlsNotConfigured
    case .systemUnsupported(let detail):
        ControlError(
            .operationUnsupported, code: "system-unsupported", status: 500, detail: detail)
    }
}
