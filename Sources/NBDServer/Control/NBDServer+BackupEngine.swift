import ServerInterface

/// The server is the engine of production; tests put a fake in its place.
extension NBDServer: BackupEngine {}
