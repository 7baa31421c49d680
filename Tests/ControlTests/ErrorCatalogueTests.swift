import Control
import ServerInterface
import Testing

@Suite struct ErrorCatalogueTests {
    @Test(arguments: [
        (
            ControlError.domainNotFound("x"), 42, 404,
            "Domain not found: no domain with matching name 'x'"
        ),
        (.noJob, 104, 404, "Domain backup job id not found: no domain backup job present"),
        (.noActiveJob, 55, 404, "Requested operation is not valid: no job is active on the domain"),
        (
            .jobAmbiguous(domain: "x"), 55, 409,
            "Requested operation is not valid: several jobs run on domain 'x': give --job"
        ),
        (
            .checkpointNotFound("c"), 103, 404,
            "Domain checkpoint not found: no domain checkpoint with matching name 'c'"
        ),
        (
            .invalidArgument(what: "ttl", detail: "is no number"), 8, 400,
            "invalid argument: ttl: is no number"
        ),
        (
            .checkpointExists("c1"), 9, 409, "operation failed: domain moment c1 already exists"
        ),
        (
            .checkpointWithoutParent("c1"), 103, 404,
            "Domain checkpoint not found: checkpoint 'c1' does not have a parent"
        ),
        (
            .checkpointUnusable("c1", disk: "vda"), 109, 409,
            "checkpoint inconsistent: missing or broken bitmap 'c1' for disk 'vda'"
        ),
        (
            .domainHasCheckpoints(2), 55, 409,
            "Requested operation is not valid: cannot delete inactive domain with 2 checkpoints"
        ),
        (.unknownDisk("vdz"), 67, 404, "unsupported configuration: no disk named 'vdz'"),
    ])
    func textsThatClientsKnow(error: ControlError, number: Int, status: Int, message: String) {
        #expect(error.libvirtCode == number)
        #expect(error.httpStatus == status)
        #expect(error.message == message)
    }

    @Test(arguments: [
        (
            ServerFault.scratchExists(path: "/s", target: "vda"), 8, 409,
            "invalid argument: store '/s' for backup of 'vda' exists"
        ),
        (
            .scratchNotCreated(path: "/s", errorText: "No such file or directory"), 38, 422,
            "failed to create image file '/s': No such file or directory"
        ),
        (
            .scratchUnusable(path: "/s", detail: "d"), 1, 422,
            "internal error: cannot use scratch '/s': d"
        ),
        (
            .cannotListen(endpoint: "127.0.0.1:10809", errorText: "Address already in use"), 1, 409,
            "internal error: cannot listen on 127.0.0.1:10809: Address already in use"
        ),
        (
            .exportNameTaken(name: "e"), 1, 409,
            "internal error: NBD server already has export named 'e'"
        ),
        (.sourceUnusable(path: "/d", detail: "d"), 38, 422, "cannot use source '/d': d"),
        (
            .sourceLocked(path: "/d", detail: "d"), 55, 409,
            "Requested operation is not valid: source '/d' is in use by another process: d"
        ),
        (
            .sourceServed(path: "/d", export: "vm1/vda"), 55, 409,
            "Requested operation is not valid: source '/d' is in use by this server: it is export"
                + " 'vm1/vda'"
        ),
        (
            .unknownJob(id: "i"), 104, 404,
            "Domain backup job id not found: no backup job with id 'i'"
        ),
        (.unknownDisk, 1, 500, "internal error: the disk is not attached to the server"),
        (
            .holdTimedOut(milliseconds: 5), 68, 500,
            "Timed out during operation: guest writes in flight did not finish within "
                + "5 ms, try again"
        ),
        (
            .limitReached(what: "jobs", limit: 3), 55, 409,
            "Requested operation is not valid: no more than 3 jobs"
        ),
        (
            .checkpointUnusable(checkpoint: "c1", target: "vda", detail: "d"), 109, 409,
            "checkpoint inconsistent: missing or broken bitmap 'c1' for disk 'vda'"
        ),
        (
            .checkpointExists(checkpoint: "c1", export: "vm1/vda"), 9, 409,
            "operation failed: disk 'vm1/vda' already holds a checkpoint 'c1'"
        ),
        (
            .notTracked(export: "vm1/vda", detail: "d"), 67, 422,
            "unsupported configuration: changes of disk 'vm1/vda' are not tracked: d"
        ),
        (.shuttingDown, 55, 500, "Requested operation is not valid: the server is shutting down"),
        (.systemUnsupported(detail: "d"), 84, 500, "Operation not supported: d"),
    ])
    func faultsOfTheServer(fault: ServerFault, number: Int, status: Int, message: String) {
        let error = controlError(from: fault)
        #expect(error.libvirtCode == number)
        #expect(error.httpStatus == status)
        #expect(error.message == message)
    }

    @Test func writerEscapesWhatAParserWouldChange() {
        var writer = XMLWriter()
        writer.element("a", [("x", "<&'\">\t\n\r\u{1}"), ("gone", nil)]) { inner in
            inner.leaf("b", text: " 1 < 2\n\u{7}")
            inner.empty("c", [("d", "")])
        }
        #expect(
            writer.text == """
                <a x='&lt;&amp;&apos;&quot;&gt;&#9;&#10;&#13;'>
                  <b> 1 &lt; 2
                </b>
                  <c d=''/>
                </a>

                """)
    }
}
