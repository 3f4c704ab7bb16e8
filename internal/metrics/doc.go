// Package metrics counts what the daemon does and serves it to Prometheus.
//
// # API
//
// New makes Metrics that ask a Source for what is a state and not a count.
// Drift, Repaired, Denied, Blocked and Lost count. Handler serves the page, and Serve
// does so on a loopback port.
//
// # Design
//
// The page is Prometheus' text format, version 0.0.4, written by hand:
// client_golang with what it brings along costs 2.9 MiB of memory and 4.5 MB of
// binary in every process of ours, and what is needed of it is a page of code.
//
// No label has more values than somebody who reads the page can bear: resources,
// services and sets are those of the configuration, and what would be one more
// than a family of samples may have is counted as "other".
//
// A scraper holds nothing up. What costs something to read is read at most once
// in a while, by one scrape at a time; others get what was read last. The page is
// complete before the first byte of it is sent, no lock is held while it is, and a
// client that does not read it is dropped.
//
// # Thread safety
//
// Metrics may be used by several goroutines, and counting never blocks.
package metrics
