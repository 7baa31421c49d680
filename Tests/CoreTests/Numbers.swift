import PointInTime
import Tracking

extension JobIndex: ExpressibleByIntegerLiteral {
    package init(integerLiteral number: Int) { self.init(number) }
}

extension CopyIndex: ExpressibleByIntegerLiteral {
    package init(integerLiteral number: Int) { self.init(number) }
}

extension ChangeID: ExpressibleByIntegerLiteral {
    package init(integerLiteral number: Int) { self.init(number) }
}
