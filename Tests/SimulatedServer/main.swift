import Glibc
import Simulation

// The simulator: of whole rings with `--server`, else of the core.
let arguments = CommandLine.arguments
if arguments.contains("--server") {
    exit(ServerCommand(arguments.filter { $0 != "--server" }).run())
}
exit(Command(arguments).run())
