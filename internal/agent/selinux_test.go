package agent

import (
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/audit"
	"github.com/pghardend/pghardend/pkg/mac"
)

const selinuxOn = "    selinux: {mode: required, level: 's0:c34,c12'}\n"

func TestSELinuxSpec(t *testing.T) {
	got := mustBuild(t, landlockConfig("postgres", pgCommand, selinuxOn)).Services[0].SELinux
	if got.Mode != launch.SELinuxRequired || got.Type != "pghardend_postgres_t" || got.Level != "s0:c12,c34" || len(got.Helpers) != 1 {
		t.Errorf("%+v", got)
	}
	if got := mustBuild(t, landlockConfig("postgres", pgCommand, "")).Services[0].SELinux; !got.Off() {
		t.Errorf("without a word: %+v", got)
	}
	if got := mustBuild(t, "selinux: {mode: preferred}\n"+landlockConfig("generic", "[/bin/true]", "    selinux: {type: exporter_t}\n")).Services[0].SELinux; got.Type != "exporter_t" || got.Mode != launch.SELinuxPreferred {
		t.Errorf("%+v", got)
	}
}

func TestF18_SELinuxRefused(t *testing.T) {
	for text, want := range map[string]string{
		landlockConfig("postgres", pgCommand, "    selinux: {mode: required, level: 's0:c2000'}\n"):  "pghardend.yaml:8: services.svc.selinux.level: \"s0:c2000\" is not an SELinux level",
		landlockConfig("generic", "[/bin/true]", "    selinux: {mode: required}\n"):                  "the profile \"generic\" has no SELinux domain: name one in services.svc.selinux.type",
		landlockConfig("postgres", pgCommand, "    selinux: {mode: preferred, level: 's0:c3.c1'}\n"): "is not an SELinux level",
	} {
		if _, err := build(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// What is kept follows from the configuration alone.
func TestWantSELinux(t *testing.T) {
	if w := wantSELinux(mustBuild(t, landlockConfig("postgres", pgCommand, ""))); !w.none() || len(w.labels)+len(w.ports) > 0 {
		t.Errorf("switched off: %+v", w)
	}
	w := wantSELinux(mustBuild(t, "selinux: {booleans: {x: true}}\n"+landlockConfig("postgres", pgCommand, selinuxOn+"    landlock: {bind: [5433]}\n")))
	if !slices.Equal(w.domains, []string{"pghardend_postgres_helper_t", "pghardend_postgres_t"}) || !w.booleans["x"] || len(w.others) > 0 {
		t.Errorf("%+v", w)
	}
	if want := []mac.PortType{{Proto: "tcp", Port: 5432, Type: "postgresql_port_t"}, {Proto: "tcp", Port: 5433, Type: "postgresql_port_t"}}; !slices.Equal(w.ports, want) {
		t.Errorf("ports %v", w.ports)
	}
	labels := map[string]string{}
	for _, l := range w.labels {
		labels[l.path] = l.context(l.typ).String()
		if l.inside && (l.typeOf("pg_hba.conf") != "pghardend_postgres_conf_t" || l.typeOf("postgresql.auto.conf") != "pghardend_postgres_data_t") {
			t.Errorf("%+v", l)
		}
	}
	for path, want := range map[string]string{
		"/var/lib/postgresql/15/main":           "system_u:object_r:pghardend_postgres_data_t:s0:c12,c34",
		"/usr/lib/postgresql/15/bin/postgres":   "system_u:object_r:pghardend_postgres_exec_t:s0",
		"/etc/pghardend":                        "system_u:object_r:pghardend_conf_t:s0",
		"/etc/pghardend/pghardend.yaml":         "system_u:object_r:pghardend_conf_t:s0",
		"/run/postgresql":                       "system_u:object_r:pghardend_socket_t:s0",
		"/var/lib/pghardend":                    "system_u:object_r:pghardend_var_lib_t:s0",
		"/run/pghardend":                        "system_u:object_r:pghardend_runtime_t:s0",
		"/usr/bin/pghardend":                    "system_u:object_r:pghardend_exec_t:s0",
		"/var/lib/postgresql/15/main/something": "",
	} {
		if labels[path] != want {
			t.Errorf("%s: %q, want %q", path, labels[path], want)
		}
	}
	// A domain of somebody else's has nothing of ours.
	w = wantSELinux(mustBuild(t, landlockConfig("generic", "[/bin/true]", "    selinux: {mode: required, type: exporter_t}\n")))
	if w.none() || len(w.labels)+len(w.ports)+len(w.domains) > 0 || !slices.Equal(w.others, []string{"exporter_t"}) {
		t.Errorf("%+v", w)
	}
}

// F30: a layer that does not confine is never shown as enforced.
func TestF30_StatusShowsSELinux(t *testing.T) {
	if _, err := os.Stat("/sys/fs/selinux/status"); err == nil {
		t.Fatal("this host has SELinux, and this is about a host without: run it on one; test/vm has the others")
	}
	for mode, want := range map[string]struct{ reasons, warnings int }{"required": {1, 0}, "preferred": {0, 1}, "off": {0, 0}} {
		s := control.Status{}
		addSELinux(t.Context(), launch.Spec{Service: "pg", SELinux: launch.SELinux{Mode: mode, Type: "x_t", Level: "s0"}}, os.Getpid(), &s)
		if len(s.Layers) != 1 || s.Layers[0].Enforced || s.Layers[0].Configured != (mode != "off") || len(s.Reasons) != want.reasons || len(s.Warnings) != want.warnings {
			t.Errorf("%s: %+v", mode, s)
		}
	}
	r := newSELinuxResource(func() selinuxWant { return selinuxWant{others: []string{"x_t"}} }, func() {})
	defer r.close()
	plan, err := r.Plan(t.Context())
	if l := r.layer(t.Context(), reconcile.Snapshot{Passes: 1, LastLook: time.Now()}, time.Second); err != nil || !plan.Empty() || l.Enforced || !l.Configured {
		t.Errorf("%v %v %+v", plan, err, l)
	}
}

func TestSELinuxPlanText(t *testing.T) {
	p := selinuxPlan{
		want: selinuxWant{module: "/x.pp"}, enforce: true, permissive: []string{"a_t"}, booleans: map[string]bool{"b": true},
		ports:  []portChange{{mac.PortType{Proto: "tcp", Port: 9999, Type: "p_t"}, "type http_port_t"}},
		labels: []labelChange{{wantedLabel{what: "program of service pg"}, "/bin/postgres", "u:r:bin_t:s0", mac.Context{User: "u", Role: "r", Type: "e_t", Level: "s0"}}},
	}
	const want = `SELinux is permissive, want enforcing
the SELinux domain a_t is permissive, want enforcing
the SELinux boolean b is false, want true
port 9999/tcp has type http_port_t, want type p_t
program of service pg /bin/postgres: has label u:r:bin_t:s0, want u:r:e_t:s0
`
	if got := p.String(); got != want || p.Empty() || !p.Repairable() || p.Unrepairable() != "" {
		t.Errorf("%s", got)
	}
	// Somebody else's domain is for people; ours is loaded.
	for module, text := range map[bool]string{true: "load the module", false: "load its module"} {
		p := selinuxPlan{module: module, missing: []string{"a_t"}}
		if p.Empty() || p.Repairable() != module || !strings.Contains(p.String(), text) {
			t.Errorf("%t: %s", module, p)
		}
	}
	if !(selinuxPlan{}).Empty() {
		t.Error("nothing is something")
	}
}

func testSELinuxWatch(t *testing.T, text string) (w *selinuxWatch, alarms chan reconcile.Alarm) {
	t.Helper()
	d := mustBuild(t, text)
	alarms = make(chan reconcile.Alarm, 8)
	return &selinuxWatch{
		alarm: func(a reconcile.Alarm) { alarms <- a }, desired: func() *Desired { return &d },
		log: slog.New(slog.DiscardHandler), news: make(chan struct{}), gone: newDomainGone(),
	}, alarms
}

// Who switched to permissive is in a record that comes a moment after the notification.
func TestSELinuxCulprit(t *testing.T) {
	w, alarms := testSELinuxWatch(t, landlockConfig("postgres", pgCommand, selinuxOn)+"runtime_dir: "+t.TempDir()+"\n")
	now := time.Now()
	w.raise(t.Context(), now, "setenforce")
	w.granted(t.Context(), audit.AVC{At: now.Add(time.Millisecond), Granted: true, Permissions: []string{"load_policy"}, PID: 1 << 30, Command: "semodule"})
	go w.granted(t.Context(), audit.AVC{At: now.Add(time.Millisecond), Granted: true, Permissions: []string{"setenforce"}, PID: 1 << 30, Command: "setenforce"})
	if who := (<-alarms).Who(); who == nil || who.Command != "setenforce" || who.PID != 1<<30 {
		t.Errorf("%+v", who)
	}
	// One of long ago is nobody's excuse.
	w.raise(t.Context(), now.Add(time.Hour), "setenforce")
	if who := (<-alarms).Who(); who != nil {
		t.Errorf("%+v", who)
	}
	// A changed label has no other notification.
	w.granted(t.Context(), audit.AVC{At: now, Granted: true, Permissions: []string{"relabelfrom"}, PID: 1 << 30, Command: "chcon"})
	if a := <-alarms; a.Resource != selinuxName || a.Who().Command != "chcon" {
		t.Errorf("%+v", a)
	}
	// What the agent does itself is no news, nor is anything where SELinux is off.
	w.granted(t.Context(), audit.AVC{At: now, Granted: true, Permissions: []string{"relabelfrom"}, PID: os.Getpid()})
	off, none := testSELinuxWatch(t, landlockConfig("postgres", pgCommand, ""))
	off.granted(t.Context(), audit.AVC{At: now, Granted: true, Permissions: []string{"relabelfrom"}, PID: 1 << 30})
	if len(alarms)+len(none) > 0 {
		t.Error("an alarm for nothing")
	}
}

func TestSELinuxDenialOfService(t *testing.T) {
	w, _ := testSELinuxWatch(t, landlockConfig("postgres", pgCommand, selinuxOn))
	for source, want := range map[string]string{
		"system_u:system_r:pghardend_postgres_t:s0:c12,c34":        "svc",
		"system_u:system_r:pghardend_postgres_helper_t:s0:c12,c34": "svc",
		"system_u:system_r:pghardend_postgres_t:s0:c1":             "", // another instance's
		"system_u:system_r:sshd_t:s0":                              "",
		"nonsense":                                                 "",
	} {
		if got := w.serviceOf(audit.AVC{Source: source}); got != want {
			t.Errorf("%s: %q", source, got)
		}
	}
	avc := audit.AVC{Permissions: []string{"read", "open"}, Class: "file", Path: "sha\ndow", Target: "system_u:object_r:shadow_t:s0"}
	if got := avcText(avc); got != "SELinux denied read open on file sha?dow (shadow_t)" {
		t.Error(got)
	}
	avc = audit.AVC{Permissions: []string{"name_connect"}, Class: "tcp_socket", Port: 4444, Permissive: true}
	if got := avcText(avc); got != "SELinux would have denied, were it not permissive, name_connect on tcp_socket port 4444" {
		t.Error(got)
	}
}

// The policy is changed by one job at a time, and what the last one failed with is said.
func TestSELinuxJob(t *testing.T) {
	done := make(chan struct{}, 1)
	j := selinuxJob{done: func() { done <- struct{}{} }}
	p := selinuxPlan{want: selinuxWant{module: "/nowhere/x.pp"}, module: true}
	if err := j.run(t.Context(), p); err != errBuilding { //nolint:errorlint // this very one
		t.Error(err)
	}
	<-done
	if err := j.run(t.Context(), p); err == nil || !strings.Contains(err.Error(), "cannot run semodule -i /nowhere/x.pp") {
		t.Error(err)
	}
	<-done
}
