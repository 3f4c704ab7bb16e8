package audit

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// As Debian 12, RHEL 9 and Fedora write them.
const (
	avcFile    = `audit(1700000001.250:95): avc:  denied  { read } for  pid=2201 comm="postgres" name="shadow" dev="vda" ino=1234 scontext=system_u:system_r:pghardend_postgres_t:s0:c1,c2 tcontext=system_u:object_r:shadow_t:s0 tclass=file permissive=0`
	avcPath    = `audit(1700000001.250:96): avc:  denied  { map execute } for  pid=2201 comm=6120706F737467726573 path="/var/lib/postgresql/15/main/x.so" dev="vda" ino=1234 scontext=system_u:system_r:pghardend_postgres_t:s0 tcontext=system_u:object_r:pghardend_postgres_data_t:s0 tclass=file permissive=1`
	avcPort    = `audit(1700000001.250:97): avc:  denied  { name_connect } for  pid=7 comm="postgres" dest=4444 scontext=system_u:system_r:pghardend_postgres_t:s0 tcontext=system_u:object_r:unreserved_port_t:s0 tclass=tcp_socket permissive=0`
	avcBind    = `audit(1700000001.250:98): avc:  denied  { name_bind } for  pid=7 comm="postgres" src=4444 scontext=system_u:system_r:pghardend_postgres_t:s0 tcontext=system_u:object_r:unreserved_port_t:s0 tclass=tcp_socket permissive=0`
	avcGranted = `audit(1700000001.250:99): avc:  granted  { setenforce } for  pid=812 comm="setenforce" scontext=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023 tcontext=system_u:object_r:security_t:s0 tclass=security`
)

func TestParseAVC(t *testing.T) {
	const label = "system_u:system_r:pghardend_postgres_t:s0"
	when := at(1700000001, 250)
	for _, tt := range []struct {
		name, text string
		want       AVC
	}{
		{"a name", avcFile, AVC{At: when, Permissions: []string{"read"}, PID: 2201, Command: "postgres", Path: "shadow",
			Source: label + ":c1,c2", Target: "system_u:object_r:shadow_t:s0", Class: "file"}},
		{"a path, in a permissive domain", avcPath, AVC{At: when, Permissive: true, Permissions: []string{"map", "execute"}, PID: 2201, Command: "a postgres",
			Path: "/var/lib/postgresql/15/main/x.so", Source: label, Target: "system_u:object_r:pghardend_postgres_data_t:s0", Class: "file"}},
		{"to a port", avcPort, AVC{At: when, Permissions: []string{"name_connect"}, PID: 7, Command: "postgres",
			Source: label, Target: "system_u:object_r:unreserved_port_t:s0", Class: "tcp_socket", Port: 4444}},
		{"on a port", avcBind, AVC{At: when, Permissions: []string{"name_bind"}, PID: 7, Command: "postgres",
			Source: label, Target: "system_u:object_r:unreserved_port_t:s0", Class: "tcp_socket", Port: 4444}},
		{"granted", avcGranted, AVC{At: when, Granted: true, Permissions: []string{"setenforce"}, PID: 812, Command: "setenforce",
			Source: "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023", Target: "system_u:object_r:security_t:s0", Class: "security"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, ok, err := Parse(TypeAVC, []byte(tt.text))
			if err != nil || !ok || r.AVC == nil || r.Change != nil || r.Denial != nil {
				t.Fatalf("%+v, %t, %v", r, ok, err)
			}
			if d := cmp.Diff(tt.want, *r.AVC); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
	for _, text := range []string{
		"", "audit(1.002:3): avc:  denied  { read", "audit(1.002:3): avc:  noted  { read } for pid=1", "audit(1.002:3): avc:  denied  { read } for  pid=1 tclass=file",
	} {
		if r, ok, err := Parse(TypeAVC, []byte(text)); ok || err == nil {
			t.Errorf("%q: %+v %t %v", text, r, ok, err)
		}
	}
}

func FuzzParseAVC(f *testing.F) {
	for _, text := range []string{avcFile, avcPath, avcPort, avcBind, avcGranted} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, ok, err := Parse(TypeAVC, text)
		if ok != (err == nil && r.AVC != nil) {
			t.Fatalf("%+v, %t, %v", r, ok, err)
		}
		if ok && (r.AVC.PID < 0 || r.AVC.Port < 0 || r.AVC.Source == "" || r.AVC.Class == "") {
			t.Errorf("%+v", *r.AVC)
		}
	})
}
