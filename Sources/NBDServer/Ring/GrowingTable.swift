/// A table whose slots are found by number and reused; it grows when all are taken.
///
/// For what a limit elsewhere bounds, so that nothing ever waits for room here.
struct GrowingTable<Element: Sendable> {
    private var elements: [Element?] = []
    private var free: [Int] = []

    /// Puts an element in and returns its number.
    mutating func insert(_ element: Element) -> Int {
        if let number = free.popLast() {
            elements[number] = element
            return number
        }
        elements.append(element)
        return elements.count - 1
    }

    /// Takes the element out; its number is used again.
    mutating func remove(_ number: Int) -> Element {
        let element = self[number]
        elements[number] = nil
        free.append(number)
        return element
    }

    /// The element of a number that may be free.
    func element(_ number: Int) -> Element? { elements[number] }

    /// The numbers of the elements that fit.
    func numbers(where fits: (Element) -> Bool) -> [Int] {
        elements.indices.filter { number in elements[number].map(fits) ?? false }
    }

    subscript(_ number: Int) -> Element {
        get {
            guard let element = elements[number] else {
                preconditionFailure("nothing has this number")
            }
            return element
        }
        set { elements[number] = newValue }
    }
}
