import IORing

/// Neighbouring pages of a ring's arena that somebody has.
struct ArenaRun {
    /// Arena offset of the first byte.
    let offset: Int
    let pages: Int

    var end: Int { offset + pages * BufferArena.pageBytes }
}
