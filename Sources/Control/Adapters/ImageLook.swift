import Foundation
import ServerInterface

/// What is seen of an image from outside, without the program that opens it.
struct ImageLook: Hashable {
    /// What `Adapter.zeroingUnit` is.
    let zeroingUnit: UInt64
    let state: ImageState

    /// Reads the beginning of every image on this host; throws where one is not what its layer
    /// says.
    init(_ image: ImageConfiguration) throws(AdapterFault) {
        // Before anything is read: a change in between shows the next time.
        state = Self.state(of: image)
        var unit: UInt64 = 1
        for (index, layer) in image.layers.enumerated() {
            guard let path = layer.place.path else {
                guard layer.format == .raw || layer.format == .luks else {
                    throw AdapterFault(
                        "'\(layer.format.rawValue)' is opened from files and devices only")
                }
                continue
            }
            let probe = ImageProbe(try Self.firstBytes(of: path), of: layer)
            let hasBacking = index + 1 < image.layers.count
            if let fault = probe.fault(hasBacking: hasBacking) { throw AdapterFault(fault) }
            if index == 0 { unit = probe.zeroingUnit }
        }
        zeroingUnit = unit
    }

    /// Which files the image and those that it needs are now, and when they were last changed.
    ///
    /// Devices and what lies elsewhere say nothing of that.
    static func state(of image: ImageConfiguration) -> ImageState {
        var (files, changes) = (StableHash(), StableHash())
        var hasFiles = false
        for path in image.layers.flatMap({ [$0.place.path, $0.dataPlace?.path] }) {
            guard let path, let file = fileState(path) else { continue }
            hasFiles = true
            files.add(file.inode)
            changes.add(file.changedNanoseconds)
        }
        return hasFiles
            ? ImageState(files: files.value, changed: changes.value)
            : ImageState(files: 0, changed: 0)
    }

    /// By an open file: a file server's client asks for nothing younger before.
    private static func fileState(_ path: String) -> (inode: UInt64, changedNanoseconds: UInt64)? {
        guard SystemCalls.isRegularFile(path), let file = FileHandle(forReadingAtPath: path) else {
            return nil
        }
        defer { try? file.close() }
        return SystemCalls.fileState(file.fileDescriptor)
    }

    private static func firstBytes(of path: String) throws(AdapterFault) -> [UInt8] {
        do {
            let real = URL(fileURLWithPath: path).resolvingSymlinksInPath().path
            let type =
                try FileManager.default.attributesOfItem(atPath: real)[.type] as? FileAttributeType
            guard type == .typeRegular || type == .typeBlockSpecial else {
                throw AdapterFault("'\(path)' is neither a file nor a block device")
            }
            let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
            defer { try? file.close() }
            return [UInt8](try file.read(upToCount: ImageProbe.byteCount) ?? Data())
        } catch let fault as AdapterFault {
            throw fault
        } catch CocoaError.fileReadNoSuchFile, CocoaError.fileNoSuchFile {
            throw AdapterFault("'\(path)' does not exist")
        } catch {
            throw AdapterFault("'\(path)' cannot be read: \(error.localizedDescription)")
        }
    }
}
