package config

import (
	"regexp"
	"strings"
	"testing"
)

// TestForms compares each form with the regular expression that says the same.
func TestForms(t *testing.T) {
	plain := func(f form) func(string) bool { return f.matches }
	for expression, matches := range map[string]func(string) bool{
		`^[a-z][a-z0-9-]{0,31}$`:                          plain(serviceName),
		`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`:                 plain(accountName),
		`^[A-Za-z][A-Za-z0-9_]{0,63}$`:                    plain(capabilityName),
		`^[A-Za-z_][A-Za-z0-9_]*$`:                        plain(variableName),
		`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`: plain(instanceID),
		`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`:            plain(nodeLabel),
		`^[a-z][a-z0-9_-]{0,23}$`:                         plain(networkName),
		`^(?:[a-z][a-z0-9-]{0,31})$`:                      plain(flowName),
		`^[a-z][a-z0-9_]{0,31}$`:                          plain(profileFeature),
		`^[A-Za-z0-9_-]{1,64}$`:                           plain(plainKey),
		`^(0|-?[1-9][0-9]*)$`:                             decimal,
		`^[A-Za-z_][A-Za-z0-9_.]{0,127}$`:                 plain(selinuxType),
		`^[a-z_][a-z0-9_]{0,127}$`:                        plain(selinuxBoolean),
		`^s[0-9]{1,2}(:c[0-9]{1,4}([.,]c[0-9]{1,4})*)?$`:  isSELinuxLevel,
	} {
		want := regexp.MustCompile(expression)
		for _, s := range candidates() {
			if got := matches(s); got != want.MatchString(s) {
				t.Errorf("%s: %q: got %v", expression, s, got)
			}
		}
	}
}

// candidates are all texts of up to three tricky characters, and long ones.
func candidates() []string {
	all := []string{""}
	for from := 0; len(all) < 6000; {
		until := len(all)
		for ; from < until; from++ {
			for _, c := range []string{"a", "z", "A", "Z", "0", "9", "1", "-", "_", ".", " ", "\n", "\x00", "é", "{", "@", "/", ":"} {
				all = append(all, all[from]+c)
			}
		}
	}
	for _, n := range []int{22, 23, 24, 25, 31, 32, 33, 61, 62, 63, 64, 65, 66, 200} {
		for _, c := range []string{"a", "A", "7", "é"} {
			s := strings.Repeat(c, n)
			all = append(all, s, s+"-", s+"_", "-"+s)
		}
	}
	for _, start := range []string{"s", "s0", "s0:", "s0:c1", "s15:c0.c1023"} {
		for _, c := range []string{"", "0", "123", "1234", "a", ".", ",", ":", ",c", ".c1", ",,c1", ",c1,", ":c1", ".c12345", ",d1", " "} {
			all = append(all, start+c)
		}
	}
	return all
}
