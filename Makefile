# `make` builds; `make demo` shows the platform at work; `make test` tests all of it.

CARGO ?= cargo
OL = target/release/ol

.PHONY: all build demo test test-cgroup-v2 long lint deps bench dist dist-test clean

all: build

build:
	$(CARGO) build --release -p openlambda --bins --features daemons

demo: build
	@examples/demo.sh $(OL)

# What the tests need beside Rust: a C compiler, Python 3, Node.js, tar, Docker's engine, gVisor, Chromium. Installed by
# apt-get where it is missing and can be had, else named.
deps:
	@.ci/deps

# A test that fails keeps none of the others from running; what failed is told at the end.
test: deps
	failed=; \
	$(CARGO) test --workspace --all-features --no-fail-fast --lib --bins --tests --examples || failed=1; \
	$(CARGO) test --workspace --all-features --no-fail-fast --doc || failed=1; \
	[ -z "$$failed" ]

# The tests of sock sandboxes on Debian's kernel with cgroup v2 alone, in a virtual machine. Needs root and
# QEMU; without KVM it takes an hour.
test-cgroup-v2:
	@.ci/cgroup-v2

# What takes too long for every change: many more seeds, histories and rounds of kill -9, and the documents' tables
# from the simulator. About an hour on 2 cores. Before a release, and after a change of what decides or cleans up.
long: deps
	@CARGO="$(CARGO)" .ci/long

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --all-features --no-deps
	@.ci/boundaries

bench:
	$(CARGO) bench -p openlambda-lab

# An archive of binaries, manual pages, completions and examples, in target/dist.
dist:
	@.ci/dist

# Runs that archive's demo in a bare root folder, which debootstrap makes. Needs root.
dist-test: dist
	@.ci/dist-test

clean:
	$(CARGO) clean
