import Tracking

extension ChangeID: ExpressibleByIntegerLiteral {
    package init(integerLiteral number: Int) { self.init(number) }
}
