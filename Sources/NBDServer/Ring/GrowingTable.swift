/// A table whose slots are found by index and reused; it grows when all are taken.
///
/// For what a limit elsewhere bounds, so that nothing ever waits for room here.
struct GrowingTable<Element: Sendable> {
    /// Names an element of a table of such elements.
    struct Index: Hashable, Sendable {
        let number: Int
    }

    private var elements: [Element?] = []
    private var free: [Index] = []

    /// Puts an element in and returns its index.
    mutating func insert(_ element: Element) -> Index {
        if let index = free.popLast() {
            elements[index.number] = element
            return index
        }
        elements.append(element)
        return Index(number: elements.count - 1)
    }

    /// Takes the element out; its index is used again.
    mutating func remove(_ index: Index) -> Element {
        let element = self[index]
        elements[index.number] = nil
        free.append(index)
        return element
    }

    /// The element of an index that may be free.
    func element(_ index: Index) -> Element? { elements[index.number] }

    /// The indices of the elements that fit.
    func indices(where fits: (Element) -> Bool) -> [Index] {
        elements.indices.filter { elements[$0].map(fits) ?? false }.map(Index.init(number:))
    }

    subscript(_ index: Index) -> Element {
        get {
            guard let element = elements[index.number] else {
                preconditionFailure("nothing has this index")
            }
            return element
        }
        set { elements[index.number] = newValue }
    }
}
