# Shortcuts. What decides whether a change is good is .ci/run, which needs no make.

GO      ?= go
FUZZ    ?= 30s
STRESS  ?= 10
REF     ?= main

.PHONY: test race lint fuzz stress bench cmp golden examples ci

test:
	$(GO) test ./...

race:
	$(GO) test -race .

lint:
	.ci/run lint cross

# Every fuzz target of the package, FUZZ each.
fuzz:
	@for target in $$($(GO) test -list '^Fuzz' . | grep '^Fuzz'); do \
		echo "$$target" && $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZ) . || exit 1; \
	done

# The tests over and over, on more threads than there are processors: what fails here now and then is a race.
stress:
	$(GO) test -count=$(STRESS) -cpu 1,4,16 -timeout 2h .

bench:
	$(GO) test -run '^$$' -bench . -benchmem .

# The package's benchmarks against a revision: make cmp REF=v0.1.0
cmp:
	cd bench && $(GO) run ./cmp -ref $(REF)

# Writes anew what tests compare with: the worked examples and tables in docs/. A change of the format shows in the diff.
golden:
	$(GO) test -run 'Doc|Golden' -update .

examples:
	.ci/run examples

ci:
	.ci/run
