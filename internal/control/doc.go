// Package control is the daemon's unix-socket HTTP/JSON API and its client.
//
// # API
//
//	GET  /v1/status                     → Status
//	POST /v1/apply?force=true           → Status after one pass
//	     …&confirm_within=60s           → Status with Pending: the change goes back unless confirmed
//	POST /v1/confirm                    → Status
//	GET  /v1/openings                   → [Opening], those that ended too
//	POST /v1/openings                   → Opening, of {"from", "proto", "port", "for", "reason"}
//	DELETE /v1/openings/ID              → Opening that has ended
//	GET  /v1/events?after=SEQ&limit=N   → one Event a line, those that are known
//	     …&follow=true                  → and all that come, until either side ends it
//	GET  /metrics                       → metrics, for Prometheus
//	POST /v1/services/NAME/start|stop   → {}
//
// An error is {"error": "..."} with a status of 4xx or 5xx. A request lasts as
// long as the work; who hangs up leaves the daemon to finish it.
//
// # Design
//
// The socket lies in runtime_dir with mode 0600, so that only root (or the
// daemon's own user) can connect: the file mode is the access control. Who it was
// that asked for an opening is recorded as the kernel says (SO_PEERCRED). The
// server only passes requests on to a Backend and never writes to the kernel.
// A slow or stuck client holds up nobody but itself: what it does not read in time
// ends its connection, and who follows the events is told if some were missed.
//
// # Thread safety
//
// Server and Client may be used from several goroutines.
package control
