// swift-tools-version: 6.2
import PackageDescription

/// One list of strict settings for every Swift target: a rule that holds in one place holds
/// everywhere.
let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .strictMemorySafety(),
    .treatAllWarnings(as: .error),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableExperimentalFeature("Lifetimes"),
]

/// The release binary brings Swift's libraries along, so that it runs where no toolchain is.
///
/// What is tested is what is packaged. The compiler has to know, as it names the libraries to link.
let staticLibraries = SwiftSetting.unsafeFlags(
    ["-static-stdlib"], .when(configuration: .release))

let package = Package(
    name: "nbdpull",
    products: [
        .executable(name: "nbdpull", targets: ["nbdpull"]),
        .executable(name: "nbdpull-vhost-load", targets: ["nbdpull-vhost-load"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
        .package(
            url: "https://github.com/apple/swift-configuration", from: "1.4.0",
            traits: ["JSON", "YAML"]),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.0"),
        .package(url: "https://github.com/apple/swift-http-types", from: "1.8.0"),
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
    ],
    targets: [
        .systemLibrary(name: "CLinux"),
        .systemLibrary(
            name: "CLibURing", pkgConfig: "liburing", providers: [.apt(["liburing-dev"])]),
        .systemLibrary(
            name: "CLibXML2", pkgConfig: "libxml-2.0", providers: [.apt(["libxml2-dev"])]),
        .systemLibrary(name: "CLibNBD", pkgConfig: "libnbd", providers: [.apt(["libnbd-dev"])]),
        .systemLibrary(
            name: "CGnuTLS", pkgConfig: "gnutls", providers: [.apt(["libgnutls28-dev"])]),
        .systemLibrary(name: "CZlib", pkgConfig: "zlib", providers: [.apt(["zlib1g-dev"])]),

        .target(name: "Tables", swiftSettings: strict),
        .target(name: "SystemLayer", dependencies: ["CLinux", "Tables"], swiftSettings: strict),
        .target(
            name: "IORing", dependencies: ["CLibURing", "CLinux", "SystemLayer"],
            swiftSettings: strict),
        .target(name: "Disk", dependencies: ["SystemLayer"], swiftSettings: strict),
        .target(name: "TLS", dependencies: ["CGnuTLS", "SystemLayer"], swiftSettings: strict),
        .target(name: "NBDProtocol", swiftSettings: strict),
        .target(name: "LibvirtProtocol", swiftSettings: strict),
        .target(name: "VhostProtocol", swiftSettings: strict),
        .target(
            name: "SharedMemory", dependencies: ["CLinux", "SystemLayer", "VhostProtocol"],
            swiftSettings: strict),
        .target(name: "Tracking", dependencies: ["CZlib"], swiftSettings: strict),
        .target(
            name: "TrackingFiles", dependencies: ["Tracking", "SystemLayer"], swiftSettings: strict),
        .target(name: "PointInTime", dependencies: ["Tables", "Tracking"], swiftSettings: strict),
        .target(
            name: "ScratchFiles", dependencies: ["PointInTime", "Disk", "SystemLayer", "Tables"],
            swiftSettings: strict),
        .target(name: "Core", dependencies: ["PointInTime", "Tracking"], swiftSettings: strict),
        .target(
            name: "Pushing",
            dependencies: ["CLibNBD", "CLinux", "Disk", "ServerInterface", "SystemLayer"],
            swiftSettings: strict),
        .target(
            name: "AdapterKeeper", dependencies: ["CLinux", "ServerInterface", "SystemLayer"],
            swiftSettings: strict),
        .target(
            name: "Upstream",
            dependencies: [
                "CLibNBD", "CLinux", "Disk", "IORing", "ServerInterface", "SharedMemory",
                "SystemLayer", "VhostProtocol",
            ],
            swiftSettings: strict),
        .target(name: "ServerInterface", dependencies: ["NBDProtocol"], swiftSettings: strict),
        .target(
            name: "BoundedCalls", dependencies: ["ServerInterface", "SystemLayer"],
            swiftSettings: strict),
        .target(
            name: "Handover", dependencies: ["ServerInterface", "SystemLayer"],
            swiftSettings: strict),
        .target(
            name: "NBDServer",
            dependencies: [
                "BoundedCalls", "Core", "Disk", "IORing", "NBDProtocol", "PointInTime",
                "ScratchFiles", "ServerInterface", "SharedMemory", "SystemLayer", "TLS", "Tables",
                "Tracking", "TrackingFiles", "Upstream", "VhostProtocol",
            ],
            swiftSettings: strict),
        .target(
            name: "Control",
            dependencies: [
                "BoundedCalls", "Disk", "LibvirtProtocol", "ServerInterface", "Tables", "CLibXML2",
                .product(name: "Hummingbird", package: "hummingbird"),
                .product(name: "HummingbirdCore", package: "hummingbird"),
                .product(name: "HTTPTypes", package: "swift-http-types"),
                .product(name: "Logging", package: "swift-log"),
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "NIOPosix", package: "swift-nio"),
                .product(name: "NIOHTTP1", package: "swift-nio"),
                .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
            ],
            // The page of the port for watching is part of the binary.
            resources: ["index.html", "page.css", "page.js", "map.js", "icon.svg"].map {
                .embedInCode("Monitor/Assets/\($0)")
            },
            swiftSettings: strict),
        .executableTarget(
            name: "nbdpull",
            dependencies: [
                "AdapterKeeper", "Control", "Handover", "NBDServer", "Pushing", "ServerInterface",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Configuration", package: "swift-configuration"),
                .product(name: "Logging", package: "swift-log"),
                .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
                .product(name: "UnixSignals", package: "swift-service-lifecycle"),
            ],
            swiftSettings: strict + [staticLibraries],
            linkerSettings: [.unsafeFlags(["-static-stdlib"], .when(configuration: .release))]),

        .target(name: "UnitSupport", path: "Tests/UnitSupport", swiftSettings: strict),
        .testTarget(
            name: "SystemTests",
            dependencies: ["Disk", "IORing", "SystemLayer", "Tables", "CLinux", "UnitSupport"],
            swiftSettings: strict),
        .testTarget(
            name: "IORingTests", dependencies: ["Disk", "IORing", "SystemLayer", "UnitSupport"],
            swiftSettings: strict),
        .testTarget(
            name: "TrackingTests",
            dependencies: ["Tracking", "TrackingFiles", "SystemLayer", "UnitSupport"],
            swiftSettings: strict),
        .testTarget(
            name: "CoreTests",
            dependencies: [
                "Core", "PointInTime", "ScratchFiles", "Tracking", "Disk", "SystemLayer",
                "UnitSupport",
            ],
            swiftSettings: strict),
        .testTarget(
            name: "TLSTests", dependencies: ["TLS", "CGnuTLS", "TestSupport"],
            swiftSettings: strict),
        .testTarget(
            name: "NBDProtocolTests", dependencies: ["NBDProtocol", "WireClient", "UnitSupport"],
            swiftSettings: strict),
        .testTarget(
            name: "LibvirtProtocolTests", dependencies: ["LibvirtProtocol"], swiftSettings: strict),
        .target(name: "VhostClient", path: "Tests/VhostClient", swiftSettings: strict),
        .testTarget(
            name: "VhostProtocolTests",
            dependencies: ["VhostProtocol", "VhostClient", "UnitSupport"], swiftSettings: strict),
        .testTarget(
            name: "NBDServerTests",
            dependencies: [
                "NBDServer", "BoundedCalls", "Core", "Disk", "IORing", "NBDProtocol", "PointInTime",
                "ScratchFiles", "ServerInterface", "SharedMemory", "SystemLayer", "TLS", "Tables",
                "Tracking", "TrackingFiles", "UnitSupport", "Upstream", "VhostClient",
                "CLinux",
            ],
            swiftSettings: strict),
        .testTarget(
            name: "UpstreamTests",
            dependencies: ["Upstream", "ServerInterface", "SystemLayer", "UnitSupport"],
            swiftSettings: strict),
        .testTarget(
            name: "PushingTests", dependencies: ["Pushing", "UnitSupport"],
            swiftSettings: strict),
        .testTarget(
            name: "ControlTests",
            dependencies: [
                "AdapterKeeper", "Control", "BoundedCalls", "Disk", "LibvirtProtocol",
                "ServerInterface", "UnitSupport",
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "NIOPosix", package: "swift-nio"),
            ],
            swiftSettings: strict),
        .systemLibrary(name: "CFrontEnd", path: "Tests/CFrontEnd"),
        .target(
            name: "VhostFrontEnd", dependencies: ["VhostClient", "CFrontEnd"],
            path: "Tests/VhostFrontEnd", swiftSettings: strict),
        .executableTarget(
            name: "nbdpull-vhost-load",
            dependencies: [
                "VhostClient", "VhostFrontEnd",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            path: "Tests/VhostLoad", swiftSettings: strict),
        .target(
            name: "TestSupport",
            dependencies: ["CLibNBD", "UnitSupport", "VhostClient", "VhostFrontEnd"],
            path: "Tests/TestSupport", swiftSettings: strict),
        .target(name: "WireClient", path: "Tests/WireClient", swiftSettings: strict),
        .testTarget(
            name: "InteropTests",
            dependencies: ["TestSupport", "VhostClient", "VhostFrontEnd", "WireClient"],
            swiftSettings: strict),
        .target(
            name: "Simulation",
            dependencies: [
                "Core", "PointInTime", "ScratchFiles", "Tracking", "TrackingFiles", "SystemLayer",
                "UnitSupport",
            ],
            path: "Tests/Simulation", swiftSettings: strict),
        .testTarget(
            name: "SimulationTests", dependencies: ["Simulation"], swiftSettings: strict),
        .target(
            name: "FuzzEntries",
            dependencies: [
                "NBDProtocol", "LibvirtProtocol", "VhostProtocol", "Tracking", "TrackingFiles",
                "Control",
                "NBDServer", "ServerInterface",
            ],
            path: "Tests/FuzzEntries", swiftSettings: strict),
        .testTarget(name: "CorpusTests", dependencies: ["FuzzEntries"], swiftSettings: strict),
        .testTarget(
            name: "PointInTimeTests", dependencies: ["TestSupport", "VhostFrontEnd"],
            swiftSettings: strict),
    ]
)

// Only for dev/simulate: the sources of NBDServer once more, within the program that runs its rings
// in a simulated world, so that they are compiled for that world as they are for the kernel.
if Context.environment["NBDPULL_SIMULATE"] != nil {
    package.products.append(
        .executable(name: "nbdpull-simulate", targets: ["nbdpull-simulate"]))
    package.targets.append(
        .executableTarget(
            name: "nbdpull-simulate",
            dependencies: [
                "BoundedCalls", "Core", "Disk", "IORing", "NBDProtocol", "PointInTime",
                "ScratchFiles", "ServerInterface", "SharedMemory", "Simulation", "SystemLayer",
                "TLS", "Tables", "Tracking", "TrackingFiles", "Upstream", "VhostClient",
                "VhostProtocol", "WireClient",
            ],
            path: "Tests/SimulatedServer", swiftSettings: strict))
}

// Only for dev/fuzz: the driver has no main of its own and links with nothing but libFuzzer.
if Context.environment["NBDPULL_FUZZ"] != nil {
    package.products.append(.executable(name: "nbdpull-fuzz", targets: ["nbdpull-fuzz"]))
    package.targets.append(
        .executableTarget(
            name: "nbdpull-fuzz", dependencies: ["FuzzEntries"], path: "Tests/FuzzDriver",
            swiftSettings: strict))
}
