import Glibc
import Simulation

exit(Command(CommandLine.arguments).run())
