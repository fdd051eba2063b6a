# What people who work on Satchel run. Every target installs the Debian packages it lacks first (tests/packages).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

SKIP_LOG := $(CURDIR)/target/skipped-tests
FUZZ_SECONDS ?= 60
# Where things are installed, and below what when that is to be packed. PROGRAMS is where they were built: that needs no root, so
# that `install` builds nothing.
PREFIX ?= /usr/local
DESTDIR ?=
PROGRAMS ?= $(CURDIR)/target/release
INSTALLED := $(DESTDIR)$(PREFIX)
SHARED := $(INSTALLED)/share
BASH_COMPLETIONS := $(SHARED)/bash-completion/completions
ZSH_COMPLETIONS := $(SHARED)/zsh/site-functions
FISH_COMPLETIONS := $(SHARED)/fish/vendor_completions.d
KILLS ?= 1

.PHONY: help
help: ## Show what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 8

.PHONY: build
build: ## Build the programs for use
	@tests/install-packages build
	cargo build --release --locked -p satchel -p satchel-vmm -p image-server

.PHONY: install
install: ## Put what `make build` has built below PREFIX (/usr/local), with manual pages, completions and the server's unit
	@for program in satchel satchel-vmm satchel-server; do \
	  [ -x "$(PROGRAMS)/$$program" ] || { echo "$(PROGRAMS)/$$program is not built: run make build first" >&2; exit 1; }; \
	done
	install -D -t "$(INSTALLED)/bin" "$(PROGRAMS)"/{satchel,satchel-vmm,satchel-server}
	@pages=$$(mktemp -d); trap 'rm -rf "$$pages"' EXIT; \
	put() { install -D -m 644 "$$@"; }; \
	for program in satchel satchel-server; do \
	  "$(INSTALLED)/bin/$$program" man "$$pages"; \
	  "$(INSTALLED)/bin/$$program" completions bash | put /dev/stdin "$(BASH_COMPLETIONS)/$$program"; \
	  "$(INSTALLED)/bin/$$program" completions zsh | put /dev/stdin "$(ZSH_COMPLETIONS)/_$$program"; \
	  "$(INSTALLED)/bin/$$program" completions fish | put /dev/stdin "$(FISH_COMPLETIONS)/$$program.fish"; \
	done; \
	put -t "$(SHARED)/man/man1" "$$pages"/*; \
	put -t "$(INSTALLED)/lib/sysusers.d" image-server/systemd/satchel-server.conf; \
	sed 's,/usr/local/bin/,$(PREFIX)/bin/,' image-server/systemd/satchel-server.service | \
	  put /dev/stdin "$(INSTALLED)/lib/systemd/system/satchel-server.service"

.PHONY: uninstall
uninstall: ## Take away what `make install` has put there
	rm -f "$(INSTALLED)"/bin/{satchel,satchel-vmm,satchel-server} "$(SHARED)"/man/man1/satchel{,-*}.1 \
	  "$(BASH_COMPLETIONS)"/satchel{,-server} "$(ZSH_COMPLETIONS)"/_satchel{,-server} \
	  "$(FISH_COMPLETIONS)"/satchel{,-server}.fish "$(INSTALLED)"/lib/sysusers.d/satchel-server.conf \
	  "$(INSTALLED)"/lib/systemd/system/satchel-server.service

.PHONY: test
test: lint ## Check format and lints, build, run every test, list what was skipped and why
	@tests/install-packages build test image tiny
	@# What tests need is made beside the programs, and before the tests, whose time limits are not meant for it. Programs and
	@# tests in one go: apart, what both depend on would be built twice, with other features.
	@tests/images/build plain >/dev/null & image=$$!; \
	tests/install-programs fsx >/dev/null & \
	cargo build --workspace --bins --tests --locked; \
	wait $$image || echo "tests that boot a guest will be skipped" >&2; \
	wait
	@tests/run "$(SKIP_LOG)"

.PHONY: test-kvm
test-kvm: ## Run the tests of Satchel's own machine, in a lab where this host has no KVM: for half an hour; KILLS (1) of each part
	@tests/install-packages build test image lab
	cargo build --workspace --locked
	SATCHEL_LAB=long SATCHEL_KILLS=$(KILLS) cargo test --locked -p satchel-tests --test guest kvm:: -- --nocapture
	tests/lab/payload

.PHONY: lint
lint: ## Check format, lints and dependencies
	@tests/install-packages build
	@tests/install-components rustfmt clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@if command -v cargo-deny >/dev/null; then \
	  cargo deny --offline --log-level error check licenses bans sources; \
	else \
	  echo "cargo-deny is not installed: licences and sources of dependencies are not checked" >&2; \
	fi

.PHONY: demo
demo: ## Publish a desktop, carry it between two machines, and show it
	@tests/install-packages build demo image
	cargo build --release --workspace --locked
	cargo run --release --locked -p satchel-tests --bin demo

.PHONY: demo-kvm
demo-kvm: ## The same with Satchel's own machine, inside a lab where KVM works on any host: for half an hour
	@tests/install-packages build demo image lab
	cargo build --release --workspace --locked
	cargo run --release --locked -p satchel-tests --bin demo -- --lab

.PHONY: demo-roaming
demo-roaming: ## Push a new golden version, work on two machines at once, and see that nothing is lost: ten minutes
	@tests/install-packages build demo image
	cargo build --release --workspace --locked
	cargo run --release --locked -p satchel-tests --bin demo-roaming

.PHONY: bench
bench: ## Measure against what people use today, for an hour, and write docs/benchmarks.md
	@tests/install-packages build bench image lab
	cargo build --release --workspace --locked
	cargo run --release --locked -p satchel-tests --bin bench

.PHONY: fuzz
fuzz: ## Feed every decoder, file system and device with broken bytes, each for FUZZ_SECONDS (60)
	@tests/install-packages build fuzz
	chunk-format/fuzz/run $(FUZZ_SECONDS)
	client/fuzz/run $(FUZZ_SECONDS)
	client/vmm/fuzz/run $(FUZZ_SECONDS)
