// Package interop holds the tests of seglog against Kafka's own code, and broker.sh, which tests it against a running
// broker. It is a module of its own, so that nothing of this is a dependency of seglog. See README.md.
package interop
