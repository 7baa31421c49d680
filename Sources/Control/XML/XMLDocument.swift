import CLibXML2
import Synchronization

/// Reads XML that a stranger may have written and hands back plain values.
///
/// Nothing is fetched, no entity is expanded, a DOCTYPE is refused, and libxml2 prints nothing.
/// This is the only file of Control that touches C memory.
package enum XMLDocument {
    /// Deepest nesting of elements accepted; converting and validating recurse this far.
    package static let depthMax = 64
    /// Most nodes directly in one element, text included; validating takes the square of it.
    package static let siblingsMax = 4096
    /// Most attributes of one element; validating takes the square of it.
    package static let attributesMax = 128
    /// Messages of the validator that an error repeats; it can write one per element.
    static let reportsMax = 6

    /// libxml2 builds its table of datatypes on first use without a lock, and a document is read in
    /// a fraction of a millisecond: one reader at a time is simplest and enough.
    ///
    /// To compile a schema takes several times as long as to check a document, and a server reads
    /// the documents of hundreds of domains before it serves the first: each schema is compiled
    /// once.
    private static let oneReader = Mutex<[String: CompiledSchema]>([:])

    private static let initialised: Void = {
        xmlInitParser()
    }()

    /// Parses `text` and validates it against `schema`.
    ///
    /// - Throws: libvirt code 35 with `(LABEL):LINE: reason` for what is not well-formed or is
    ///   refused outright (DOCTYPE, too long, too deep), 92 for what the schema does not allow.
    package static func parse(
        _ text: String, schema: XMLSchema
    ) throws(ControlError) -> XMLElement {
        let length = text.utf8.count
        guard length <= schema.maximumBytes else {
            throw .xmlMalformed(
                document: schema.documentLabel, line: 1,
                detail: "document of \(length) bytes is longer than \(schema.maximumBytes)")
        }
        // libxml2 takes a zero byte for the end of the text and would not see what follows.
        if let zero = text.utf8.firstIndex(of: 0) {
            throw .xmlMalformed(
                document: schema.documentLabel,
                line: 1 + text.utf8[..<zero].count { $0 == UInt8(ascii: "\n") },
                detail: "a zero byte is not accepted")
        }
        return try oneReader.withLock { compiled throws(ControlError) in
            initialised
            return try read(text, schema: schema, &compiled)
        }
    }

    private static func read(
        _ text: String, schema: XMLSchema, _ compiled: inout [String: CompiledSchema]
    ) throws(ControlError) -> XMLElement {
        let reports = Reports()
        // SAFETY: the context is freed on every way out, and the document after its last use;
        // `reports` outlives both because it is used after them.
        guard let context = unsafe xmlNewParserCtxt(), let handler = unsafe context.pointee.sax
        else { throw .outOfMemory }
        defer { unsafe xmlFreeParserCtxt(context) }
        unsafe context.pointee._private = Unmanaged.passUnretained(reports).toOpaque()
        unsafe handler.pointee.serror = { context, error in
            unsafe reportsOfParser(context)?.add(error)
        }
        unsafe handler.pointee.internalSubset = { context, _, _, _ in
            unsafe reportsOfParser(context)?.sawDocumentType(context)
        }
        let options =
            XML_PARSE_NONET.rawValue | XML_PARSE_IGNORE_ENC.rawValue
            | XML_PARSE_NOCDATA.rawValue
        let document = unsafe text.withCString { bytes in
            unsafe xmlCtxtReadMemory(
                context, bytes, Int32(text.utf8.count), nil, "UTF-8", Int32(options))
        }
        defer { unsafe xmlFreeDoc(document) }
        if let line = reports.documentTypeLine {
            throw .xmlMalformed(
                document: schema.documentLabel, line: line, detail: "a DOCTYPE is not accepted")
        }
        guard let document = unsafe document, let root = unsafe xmlDocGetRootElement(document)
        else {
            let first = reports.lines.first
            throw .xmlMalformed(
                document: schema.documentLabel, line: first?.line ?? 1,
                detail: first?.message ?? "document is empty")
        }
        let tree = try unsafe element(root, depth: 1, label: schema.documentLabel)
        if compiled[schema.source] == nil { compiled[schema.source] = try CompiledSchema(schema) }
        if let compiled = compiled[schema.source] {
            try unsafe validate(document, tree: tree, schema, compiled)
        }
        return tree
    }

    /// Copies an element and what is below it into values.
    private static func element(
        _ node: UnsafePointer<xmlNode>, depth: Int, label: String
    ) throws(ControlError) -> XMLElement {
        // SAFETY: the nodes belong to a document that the caller keeps alive, and every link that
        // is followed is either nil or a node of that document.
        let line = unsafe Int(xmlGetLineNo(node))
        guard depth <= depthMax else {
            throw .xmlMalformed(
                document: label, line: line,
                detail: "elements are nested deeper than \(depthMax)")
        }
        var children: [XMLElement] = []
        var text = ""
        var next = unsafe node.pointee.children
        var count = 0
        while let child = unsafe next {
            count += 1
            guard count <= siblingsMax else {
                throw .xmlMalformed(
                    document: label, line: line,
                    detail: "more than \(siblingsMax) nodes in one element")
            }
            switch unsafe child.pointee.type {
            case XML_ELEMENT_NODE:
                children.append(try unsafe element(child, depth: depth + 1, label: label))
            case XML_TEXT_NODE, XML_CDATA_SECTION_NODE:
                unsafe text += string(child.pointee.content)
            default:
                break
            }
            unsafe next = child.pointee.next
        }
        let attributes = unsafe attributes(of: node)
        guard attributes.count <= attributesMax else {
            throw .xmlMalformed(
                document: label, line: line,
                detail: "more than \(attributesMax) attributes on one element")
        }
        let namespace = unsafe node.pointee.ns.map { unsafe string($0.pointee.href) }
        return unsafe XMLElement(
            name: string(node.pointee.name), namespace: namespace, attributes: attributes,
            children: children, text: text, line: line)
    }

    private static func attributes(of node: UnsafePointer<xmlNode>) -> [XMLAttribute] {
        // SAFETY: as in `element`; an attribute's value is the text of its child nodes.
        var found: [XMLAttribute] = []
        var next = unsafe node.pointee.properties
        while let attribute = unsafe next {
            var value = ""
            var part = unsafe attribute.pointee.children
            while let piece = unsafe part {
                unsafe value += string(piece.pointee.content)
                unsafe part = piece.pointee.next
            }
            found.append(
                XMLAttribute(
                    name: unsafe string(attribute.pointee.name), value: value,
                    isForeign: unsafe attribute.pointee.ns != nil))
            unsafe next = attribute.pointee.next
        }
        return found
    }

    private static func validate(
        _ document: xmlDocPtr, tree: XMLElement, _ schema: XMLSchema, _ compiled: CompiledSchema
    ) throws(ControlError) {
        let reports = Reports()
        let context = unsafe Unmanaged.passUnretained(reports).toOpaque()
        // SAFETY: the validator is freed on every way out, and before its schema, which the caller
        // holds; `reports` is used after it.
        guard let validator = unsafe xmlRelaxNGNewValidCtxt(compiled.schema) else {
            throw .outOfMemory
        }
        defer { unsafe xmlRelaxNGFreeValidCtxt(validator) }
        unsafe xmlRelaxNGSetValidStructuredErrors(validator, addReport, context)
        guard unsafe xmlRelaxNGValidateDoc(validator, document) != 0 else { return }
        let explained = schema.explain(tree)
        let detail =
            explained.isEmpty
            ? reports.text ?? "the document is not of the form it describes"
            : explained.joined(separator: "; ")
        throw .xmlSchemaViolation(schema: schema.name, detail: detail)
    }

    private static func string(_ bytes: UnsafePointer<xmlChar>?) -> String {
        // SAFETY: libxml2's strings are valid UTF-8 and end with a zero byte.
        guard let bytes = unsafe bytes else { return "" }
        return unsafe String(cString: bytes)
    }
}

/// A schema as libxml2 checks documents against it; used by one thread at a time.
// SAFETY: the pointer is used by this file alone, while the object is held.
@safe
private final class CompiledSchema {
    let schema: xmlRelaxNGPtr

    init(_ schema: XMLSchema) throws(ControlError) {
        let reports = Reports()
        let context = unsafe Unmanaged.passUnretained(reports).toOpaque()
        // SAFETY: the parser is freed on every way out; the schema's text is borrowed only while it
        // is compiled; `reports` is used after both.
        let compiled = unsafe schema.source.withCString { bytes -> xmlRelaxNGPtr? in
            let length = Int32(schema.source.utf8.count)
            guard let parser = unsafe xmlRelaxNGNewMemParserCtxt(bytes, length) else { return nil }
            defer { unsafe xmlRelaxNGFreeParserCtxt(parser) }
            unsafe xmlRelaxNGSetParserStructuredErrors(parser, addReport, context)
            return unsafe xmlRelaxNGParse(parser)
        }
        guard let compiled = unsafe compiled else {
            let detail = reports.text ?? "out of memory"
            throw .internalError("schema \(schema.name) cannot be compiled: \(detail)")
        }
        unsafe self.schema = unsafe compiled
    }

    deinit {
        // SAFETY: this object alone refers to it.
        unsafe xmlRelaxNGFree(schema)
    }
}

/// libxml2's messages about one document.
private final class Reports {
    struct Line {
        let line: Int
        let message: String
    }

    private(set) var lines: [Line] = []
    private(set) var documentTypeLine: Int?

    /// All messages in one line, each with its position; nil if there are none.
    var text: String? {
        guard !lines.isEmpty else { return nil }
        return lines.map { "line \($0.line): \($0.message)" }.joined(separator: "; ")
    }

    func add(_ error: UnsafePointer<xmlError>?) {
        // SAFETY: libxml2 passes an error that is valid during the call.
        guard lines.count < XMLDocument.reportsMax, let error = unsafe error,
            let message = unsafe error.pointee.message
        else { return }
        var text = unsafe String(cString: message)
        while text.last?.isNewline == true {
            text.removeLast()
        }
        lines.append(Line(line: unsafe Int(error.pointee.line), message: text))
    }

    func sawDocumentType(_ parser: UnsafeMutableRawPointer?) {
        // SAFETY: the parser passes its own context, and may be stopped from a callback.
        let context = unsafe parser?.assumingMemoryBound(to: xmlParserCtxt.self)
        documentTypeLine = unsafe Int(context?.pointee.input?.pointee.line ?? 1)
        unsafe xmlStopParser(context)
    }
}

private func reportsOfParser(_ parser: UnsafeMutableRawPointer?) -> Reports? {
    // SAFETY: the parser passes its own context; `read` has set its private field to a live object.
    guard let owner = unsafe parser?.assumingMemoryBound(to: xmlParserCtxt.self).pointee._private
    else { return nil }
    return unsafe Unmanaged<Reports>.fromOpaque(owner).takeUnretainedValue()
}

private func addReport(_ context: UnsafeMutableRawPointer?, _ error: xmlErrorPtr?) {
    // SAFETY: `validate` passes a live object as the context.
    guard let context = unsafe context else { return }
    unsafe Unmanaged<Reports>.fromOpaque(context).takeUnretainedValue().add(error)
}
