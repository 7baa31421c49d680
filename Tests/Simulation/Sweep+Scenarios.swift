import Core

extension Sweep {
    /// Every call and every kind of I/O there is, each by itself.
    static let scenarios = [
        Scenario(name: "attach") { _ in
        } body: { world in
            world.start()
            world.writeEverywhere()
        },
        Scenario(name: "write") { world in
            world.startWell()
        } body: { world in
            world.change()
        },
        Scenario(name: "begin") { world in
            world.startWell()
        } body: { world in
            world.begin(on: world.disks, withCheckpoint: false)
            world.change()
        },
        Scenario(name: "begin with a checkpoint, from a checkpoint") { world in
            world.startWell()
        } body: { world in
            world.begin(on: world.disks, withCheckpoint: true)
            world.change()
        },
        Scenario(name: "write under two jobs") { world in
            world.startWell()
            world.begin(on: world.disks, withCheckpoint: false)
            world.calm()
            world.begin(on: world.disks, withCheckpoint: false)
            world.calm()
        } body: { world in
            world.change()
        },
        Scenario(name: "pull") { world in
            world.startWell()
            world.begin(on: world.disks, withCheckpoint: false)
            world.calm()
            world.change()
        } body: { world in
            world.pull()
        },
        Scenario(name: "seal") { world in
            world.startWell()
        } body: { world in
            world.makeCheckpoint(on: world.disks)
            world.writeEverywhere()
        },
        Scenario(name: "checkpoint delete") { world in
            world.startWell()
            world.makeCheckpoint(on: world.disks)
            world.writeEverywhere()
            world.makeCheckpoint(on: world.disks)
            world.writeEverywhere()
        } body: { world in
            for disk in world.disks {
                for name in [disk.bases.dropFirst().first, disk.bases.last, disk.bases.first] {
                    guard let name, world.isGoing, !disk.isOwned, !disk.isSaving else { continue }
                    world.deleteCheckpoint(name, of: disk)
                    world.calm()
                }
            }
        },
        Scenario(name: "end") { world in
            world.startWell()
            world.begin(on: world.disks, withCheckpoint: false)
            world.calm()
            for disk in world.disks { disk.issue(.write, World.cluster(0, 8)) }
        } body: { world in
            for job in world.jobs { world.end(job) }
        },
        Scenario(name: "stop, undefine") { world in
            world.startWell()
        } body: { world in
            world.beginStop()
            world.calm()
            if world.isDown { world.start() }
        },
        Scenario(name: "start after a kill") { world in
            world.startWell()
            world.kill()
        } body: { world in
            world.start()
        },
        Scenario(name: "start after a loss of power") { world in
            world.startWell()
            world.perform(.cutPower)
        } body: { world in
            world.start()
        },
        Scenario(name: "start after a clean stop") { world in
            world.startWell()
            world.beginStop()
            world.calm()
        } body: { world in
            world.start()
        },
        Scenario(name: "clean-up of the log") { world in
            world.startWell()
        } body: { world in
            for _ in 0..<12 where world.isGoing {
                world.passTime()
                world.moveEverything()
            }
            world.writeEverywhere()
        },
    ]
}

extension World {
    /// Disks that are served, written, and have a checkpoint.
    func startWell() {
        start()
        calm()
        writeEverywhere()
        makeCheckpoint(on: disks)
        calm()
        writeEverywhere()
    }

    /// Changes of every kind.
    func change() {
        for disk in disks {
            disk.issue(.write, Self.cluster(0, 3))
            disk.issue(.write, durable: true, disk.source.shape.regionRange(1))
            disk.issue(.zero, durable: true, Self.cluster(3, 5))
            disk.issue(.discard, Self.cluster(5, 7))
            disk.issue(.flush)
        }
        calm()
    }

    /// A client of every job reads everything that is hot.
    func pull() {
        for job in jobs {
            for part in job.parts where job.isPublished && !job.isEnding {
                part.readers.append(Reader(Self.cluster(0, 8)))
                part.readers.append(Reader(part.disk.source.shape.regionRange(1)))
            }
        }
        calm()
    }
}
