package firewall

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// scripts is a runner whose commands are shell scripts: iptables is not needed
// on the machine, and every version can be played.
type scripts struct {
	execRunner
	dir string
}

func (s scripts) find(name string) (string, error) { return exec.LookPath(filepath.Join(s.dir, name)) }

// noSetAccess is a kernel that does not talk about sets.
type noSetAccess struct{}

func (noSetAccess) open(context.Context) (setSession, error) {
	return nil, setAccessError{errors.New("no netlink")}
}

func newScripts(t *testing.T, versions map[string]string) scripts {
	t.Helper()
	s := scripts{dir: t.TempDir()}
	for name, version := range versions {
		text := "#!/bin/sh\necho '" + version + "'\n"
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

const (
	nft189    = "iptables v1.8.9 (nf_tables)"
	legacy189 = "iptables v1.8.9 (legacy)"
)

func TestOpen(t *testing.T) {
	both := map[string]string{"iptables": nft189, "ip6tables": nft189, "iptables-nft": nft189, "ip6tables-nft": nft189,
		"iptables-legacy": legacy189, "ip6tables-legacy": legacy189, "ipset": ""}
	plain := map[string]string{"iptables": legacy189, "ip6tables": legacy189, "ipset": ""}
	for name, tc := range map[string]struct {
		versions      map[string]string
		asked         string
		backend, save string // the backend and the IPv4 save command
	}{
		"auto is what iptables is": {both, BackendAuto, BackendNFT, "iptables-nft-save"},
		"nft":                      {both, BackendNFT, BackendNFT, "iptables-nft-save"},
		"legacy":                   {both, BackendLegacy, BackendLegacy, "iptables-legacy-save"},
		"plain names":              {plain, BackendAuto, BackendLegacy, "iptables-save"},
		"plain legacy":             {plain, BackendLegacy, BackendLegacy, "iptables-save"},
	} {
		t.Run(name, func(t *testing.T) {
			run := newScripts(t, tc.versions)
			f, err := open(t.Context(), tc.asked, run, noSetAccess{})
			if err != nil {
				t.Fatal(err)
			}
			if f.Backend() != tc.backend || f.tools[IPv4].save != filepath.Join(run.dir, tc.save) {
				t.Errorf("backend %s, tools %+v", f.Backend(), f.tools)
			}
			if _, err := f.sets.open(t.Context()); f.missing != [2]error{} || err != nil {
				t.Errorf("missing %v, %v", f.missing, err)
			}
		})
	}
}

func TestOpenErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		versions map[string]string
		asked    string
		want     string
	}{
		"nothing":         {nil, BackendAuto, "iptables is not installed; install the package iptables"},
		"unknown backend": {nil, "ebtables", "firewall.backend: use auto, nft or legacy"},
		"other backend":   {map[string]string{"iptables": nft189, "ip6tables": nft189}, BackendLegacy, "iptables-legacy is not installed and "},
		"too old":         {map[string]string{"iptables-nft": "iptables v1.6.2", "ip6tables-nft": "iptables v1.6.2"}, BackendNFT, "is version 1.6.2; install 1.8.0 or later"},
		"old and plain":   {map[string]string{"iptables": "iptables v1.6.2"}, BackendAuto, "neither nf_tables nor legacy"},
		"no version":      {map[string]string{"iptables-nft": "hello", "ip6tables-nft": "hello"}, BackendNFT, "cannot probe"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := open(t.Context(), tc.asked, newScripts(t, tc.versions), noSetAccess{})
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "cannot open the firewall: ") {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

// F11: what is missing is named, and the rest works.
func TestF11_OpenWithToolsMissing(t *testing.T) {
	for name, versions := range map[string]map[string]string{
		"ip6tables": {"iptables-nft": nft189, "iptables": nft189, "ipset": ""},
		"iptables":  {"ip6tables-nft": nft189, "ip6tables": nft189, "ipset": ""},
		"ipset":     {"iptables": nft189, "ip6tables": nft189},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := open(t.Context(), BackendAuto, newScripts(t, versions), noSetAccess{})
			if err != nil {
				t.Fatal(err)
			}
			if (f.missing[IPv4] != nil) != (name == "iptables") || (f.missing[IPv6] != nil) != (name == "ip6tables") {
				t.Errorf("missing %v", f.missing)
			}
			_, err = f.Observe(t.Context())
			if err == nil || !strings.Contains(err.Error(), name+" is not installed; install the package ") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestExecRunner(t *testing.T) {
	run := execRunner{}
	sh, err := run.find("sh")
	if err != nil || !filepath.IsAbs(sh) {
		t.Fatalf("sh is %q, %v", sh, err)
	}
	if _, err := run.find("no-such-command"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("error %v", err)
	}
	t.Setenv("SECRET", "x")
	out, err := run.run(t.Context(), "in\n", sh, "-c", `cat; echo "$LC_ALL:$SECRET"; echo noise >&2`)
	if err != nil || string(out) != "in\nC:\n" {
		t.Errorf("%q, %v", out, err)
	}
	_, err = run.run(t.Context(), "", sh, "-c", "echo the reason >&2; exit 4")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 4 || !strings.HasSuffix(err.Error(), "exit status 4: the reason") {
		t.Errorf("error %v", err)
	}
}

// A command that hangs, or leaves a child that holds its output, ends with ctx.
func TestExecRunnerIsBounded(t *testing.T) {
	for _, script := range []string{"exec sleep 20", "sleep 20 & wait", "sleep 20 & exit 1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		start := time.Now()
		_, err := execRunner{}.run(ctx, "", "/bin/sh", "-c", script)
		cancel()
		if took := time.Since(start); err == nil || took > 10*time.Second {
			t.Errorf("%s: %v after %v", script, err, took)
		}
	}
}

// The tools of both backends: teardown cleans each, and leaves sets to the last.
func TestTeardownBackends(t *testing.T) {
	k := newFakeKernel()
	k.absent = []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy", "iptables", "ip6tables"}
	if _, err := teardown(t.Context(), k, fakeSets{k}, func() [3]bool { return [3]bool{true, true, true} }); err == nil || !strings.Contains(err.Error(), "cannot tear down: neither") {
		t.Errorf("error %v", err)
	}
}

func TestPlanWithoutSets(t *testing.T) {
	p := TeardownPlan(asObserved(render(t, "postgres"))).withoutSets()
	if p.sets != nil || p.dropSets != nil || p.rules[IPv4] == "" || p.Empty() {
		t.Errorf("%+v", p)
	}
	for _, c := range p.Changes {
		if c.Resource == resourceSet {
			t.Errorf("%+v", c)
		}
	}
}
