/// An error as every front-end shows it: a stable slug, libvirt's number and category where clients
/// branch on them, and a text.
///
/// `message` is libvirt's category prefix and detail (`"invalid argument: store '/x' for backup of
/// 'vda' exists"`), so that a line `error: MESSAGE` reads as virsh's does.
package struct ControlError: Error, Sendable, Hashable {
    /// Stable, for programs: `checkpoint-not-found`, `xml-invalid`, ...
    package let code: String
    /// virErrorNumber (libvirt's `virterror.h`), for example 103.
    package let libvirtCode: Int
    package let message: String
    /// HTTP status the control socket answers with.
    package let httpStatus: Int

    package init(code: String, libvirtCode: Int, message: String, httpStatus: Int) {
        self.code = code
        self.libvirtCode = libvirtCode
        self.message = message
        self.httpStatus = httpStatus
    }
}
