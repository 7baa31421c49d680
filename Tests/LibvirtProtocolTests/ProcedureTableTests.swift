import LibvirtProtocol
import Testing

@Suite struct ProcedureTableTests {
    @Test(
        "a procedure is named as libvirt's functions are",
        arguments: [
            (1, "virConnectOpen"), (14, "virDomainGetXMLDesc"), (23, "virDomainLookupByName"),
            (93, "virStorageVolCreateXML"), (110, "virConnectGetURI"), (335, "virDomainFSFreeze"),
            (421, "virDomainBackupBegin"), (443, "virDomainFDAssociate"), (444, "procedure 444"),
            (0, "procedure 0"), (-1, "procedure -1"),
        ] as [(Int32, String)])
    func function(number: Int32, function: String) {
        #expect(Procedure(rawValue: number).function == function)
    }

    @Test("no procedure stands in the table twice, and each has a name")
    func table() {
        var seen: Set<Procedure> = []
        for entry in ProcedureTable.all {
            #expect(seen.insert(entry.procedure).inserted, "\(entry.procedure.function)")
            #expect(entry.procedure.name != nil)
        }
    }
}
