package control

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// What `status --json` prints is a contract: a key may be added, none renamed.
const golden = `{
  "version": "1.0",
  "node": "pg-0",
  "role": "postgres",
  "instance": "orders-prod",
  "state": "degraded",
  "reasons": [
    "config: bad"
  ],
  "pid": 42,
  "backend": "nft",
  "generation": 3,
  "last_reconcile": "2026-01-02T03:04:05Z",
  "last_look": "2026-01-02T03:04:05Z",
  "alarms": "nft notifications",
  "layers": [
    {
      "name": "netfilter",
      "subject": "node",
      "configured": true,
      "enforced": false,
      "detail": "no pass yet"
    }
  ],
  "services": [
    {
      "name": "postgres",
      "state": "ready",
      "pid": 4711,
      "processes": 7,
      "since": "2026-01-02T03:04:05Z",
      "adopted": true,
      "restarts": 2,
      "last_error": ""
    }
  ],
  "drift": [
    {
      "id": 9,
      "resource": "firewall",
      "cause": "drift",
      "trigger": "event",
      "what": "ipv4 chain PGHARDEND-IN: missing",
      "since": "2026-01-02T03:04:05Z",
      "found": "2026-01-02T03:04:05Z",
      "repaired": "2026-01-02T03:04:05Z",
      "open_ms": 12.5,
      "who": {
        "pid": 123,
        "command": "iptables",
        "uid": 0,
        "exe": "/usr/sbin/xtables-nft-multi",
        "args": "iptables -F",
        "parent": "bash (122)"
      },
      "restart": true,
      "error": "why"
    }
  ],
  "openings": [
    {
      "id": "0a1b2c",
      "from": "192.0.2.7/32",
      "proto": "tcp",
      "port": 5432,
      "opened": "2026-01-02T03:04:05Z",
      "until": "2026-01-02T03:04:05Z",
      "reason": "restore",
      "by": "uid 0",
      "ended": "2026-01-02T03:04:05Z",
      "ended_by": "uid 0"
    }
  ],
  "denials": {
    "source": "trace",
    "last": [
      {
        "service": "postgres",
        "what": "the execution of /bin/sh was blocked (EACCES)",
        "count": 2,
        "first": "2026-01-02T03:04:05Z",
        "last": "2026-01-02T03:04:05Z",
        "who": {
          "pid": 9,
          "command": "postgres",
          "uid": 26,
          "parent": "postgres (8)"
        }
      }
    ]
  },
  "warnings": [
    "legacy iptables holds 3 rules"
  ],
  "pending": {
    "since": "2026-01-02T03:04:05Z",
    "until": "2026-01-02T03:04:05Z"
  }
}`

func TestStatusJSON(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := Status{
		Version: "1.0", Node: "pg-0", Role: "postgres", Instance: "orders-prod",
		State: StateDegraded, Reasons: []string{"config: bad"}, PID: 42, Backend: "nft", Generation: 3, LastReconcile: at,
		LastLook: at, Alarms: "nft notifications",
		Denials: Denials{Source: "trace", Last: []Denial{{Service: "postgres", What: "the execution of /bin/sh was blocked (EACCES)", Count: 2,
			First: at, Last: at, Who: &Culprit{PID: 9, Command: "postgres", UID: 26, Parent: "postgres (8)"}}}},
		Warnings: []string{"legacy iptables holds 3 rules"},
		Layers:   []Layer{{Name: "netfilter", Subject: "node", Configured: true, Detail: "no pass yet"}},
		Services: []Service{{Name: "postgres", State: "ready", PID: 4711, Processes: 7, Since: at, Adopted: true, Restarts: 2}},
		Drift: []Drift{{
			ID: 9, Resource: "firewall", Cause: "drift", Trigger: "event", What: "ipv4 chain PGHARDEND-IN: missing", Restart: true,
			Who:   &Culprit{PID: 123, Command: "iptables", Exe: "/usr/sbin/xtables-nft-multi", Args: "iptables -F", Parent: "bash (122)"},
			Since: at, Found: at, Repaired: at, OpenMS: 12.5, Error: "why",
		}},
		Openings: []Opening{{
			ID: "0a1b2c", From: netip.MustParsePrefix("192.0.2.7/32"), Proto: "tcp", Port: 5432,
			Opened: at, Until: at, Reason: "restore", By: "uid 0", Ended: at, EndedBy: "uid 0",
		}},
		Pending: &Pending{Since: at, Until: at},
	}
	got, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(golden, string(got)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}

	dir, _ := serve(t, &backend{status: s})
	back, err := NewClient(dir).Status(t.Context())
	if d := cmp.Diff(s, back, cmpopts.EquateComparable(netip.Prefix{})); err != nil || d != "" {
		t.Errorf("what the client gets (-sent +got), error %v\n%s", err, d)
	}
}
