package launch

import (
	"slices"
	"testing"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// Who has no UDP asks for names by TCP, unless the configuration says something.
func TestResolverByTCP(t *testing.T) {
	parse := func(sockets string) sandbox.Profile {
		p, err := sandbox.ParseProfile("test", []byte(`{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
			{"names": ["socket"], "action": "SCMP_ACT_ALLOW"`+sockets+`}]}`))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	none, all := parse(`, "args": [{"index": 1, "value": 15, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]`), parse("")
	for _, c := range []struct {
		profile   sandbox.Profile
		env, want []string
	}{
		{none, nil, []string{"RES_OPTIONS=use-vc"}},
		{none, []string{"A=1"}, []string{"A=1", "RES_OPTIONS=use-vc"}},
		{none, []string{"RES_OPTIONS=timeout:1"}, []string{"RES_OPTIONS=timeout:1"}},
		{all, []string{"A=1"}, []string{"A=1"}},
	} {
		if got := (Spec{Seccomp: c.profile, Environment: c.env}).variables(); !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, want %q", c.env, got, c.want)
		}
	}
}
