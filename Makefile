# Everything here is a shortcut: the work is done by SwiftPM, dev/, demo/ and bench/.

BINARY := .build/release/nbdpull

.PHONY: help demo build deb test soak soak-real check bench format clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Build, then back up a disk that is being written to, and prove the copy.
	@dev/install-packages build demo
	swift build -c release --product nbdpull
	@demo/run $(BINARY)

build: ## Build the release binary, .build/release/nbdpull.
	@dev/install-packages build
	swift build -c release --product nbdpull

deb: build ## Make the Debian package, .build/deb/nbdpull_VERSION_ARCH.deb.
	@dev/install-packages package
	@packaging/build

test: ## Install what the tests need, then run every check there is.
	@dev/install-packages build demo package test
	-@dev/install-packages browser
	-@dev/clients
	-@dev/venv
	dev/check full

soak: ## Run the simulator on new seeds for TIME seconds (600): make soak TIME=3600
	@dev/install-packages build
	dev/simulate soak --seconds $(or $(TIME),600)

soak-real: build ## Kill the server under machines and backups for TIME seconds (600): make soak-real TIME=1800
	@dev/install-packages demo test
	dev/hell --seconds $(or $(TIME),600)

check: ## The quick checks: form, module arrows, debug build, unit tests.
	@dev/install-packages build
	dev/check quick

bench: build ## Measure this server against others.
	@dev/install-packages demo test bench
	swift build -c release --product nbdpull-vhost-load
	bench/run

format: ## Bring all Swift files into form.
	dev/format

clean: ## Remove everything that was built or made.
	rm -rf .build .build-trixie .build-tree .build-venv demo-data
