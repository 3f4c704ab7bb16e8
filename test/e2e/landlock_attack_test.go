package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/pghardend/pghardend/pkg/mac"
)

// A36 without a database: nothing is executed but the program and its helpers, by
// whatever way, and what is declared works.
func TestA36_OnlyDeclaredProgramsAreExecuted(t *testing.T) {
	landlockAttack{
		script: `/usr/bin/id -u >/dev/null && echo id || echo no; /usr/bin/bash -c 'echo bash' || echo no;
			/usr/bin/dash -c 'echo dash'; /usr/bin/cat /dev/null && echo cat`,
		helpers: []string{"cat"},
	}.says(t, "no no dash cat", "id bash dash cat")
}

// A40: what the service has dropped itself is not executed. The loader will still
// run it: execve cannot tell why the loader is opened, and mmap is not looked at.
func TestA40_DroppedProgram(t *testing.T) {
	loader := loaderOf(t, "/usr/bin/true")
	drop := landlockAttack{
		script: `cp /usr/bin/true dropped; chmod 700 dropped; ./dropped && echo ran || echo denied; ` +
			loader + ` ./dropped && echo ran || echo denied`,
		helpers: []string{"cp", "chmod"},
	}
	drop.says(t, "denied ran", "ran ran")

	// On a file system with noexec the kernel maps nothing of it as code.
	for _, mode := range []string{"off", "required"} {
		in := drop.input(t)
		in.Landlock.Mode = mode
		r := launchRun(t, in, noexecWrap(in.DataDir)...).works(t)
		if r.stdout != "denied\ndenied\n" {
			t.Errorf("noexec, landlock %s: %q\n%s", mode, r.stdout, r.stderr)
		}
	}
}

// A43: processes of the same user that are none of the service cannot be signalled.
func TestA43_SignalsStayInTheService(t *testing.T) {
	landlockAttack{
		script: fmt.Sprintf(`kill -0 %d && echo signalled || echo denied; sleep 100 & kill $! && wait $!; [ $? = 143 ] && echo own`, bystander(t)),
		// 143 is 128 and SIGTERM.
		helpers: []string{"sleep"},
	}.says(t, "denied own", "signalled own")
}

// A49, A50: files outside are neither changed, nor replaced, removed or cut, though
// every other layer would allow it. Attributes are out of Landlock's reach.
func TestA49_ConfigurationOutsideIsNotEdited(t *testing.T) {
	dir := landlockOpen(t)
	conf := filepath.Join(dir, "pg_hba.conf")
	launchWrite(t, conf, []byte("local all all reject\n"), 0o666)
	landlockAttack{
		script: `cd ` + dir + ` || exit; (echo host all all all trust >> pg_hba.conf) && echo edited || echo denied;
			mv -f pg_hba.conf away && mv away pg_hba.conf && echo moved || echo denied`,
		helpers: []string{"mv"},
	}.says(t, "denied denied", "edited moved")
	text, err := os.ReadFile(conf)
	must(t, err)
	if string(text) != "local all all reject\nhost all all all trust\n" { // that of the control
		t.Errorf("the file is %q", text)
	}
}

func TestA50_ProgramsAndUnitsAreNotReplaced(t *testing.T) {
	dir := landlockOpen(t)
	program, unit := filepath.Join(dir, "program"), filepath.Join(dir, "x.service")
	launchCopy(t, "/usr/bin/true", program, 0o777)
	launchWrite(t, unit, []byte("[Service]\n"), 0o666)
	landlockAttack{
		script: `cd ` + dir + ` || exit; [ -e x.service ] || exit; (: > program) && echo cut || echo denied; (echo x > y.service) && echo made || echo denied;
			cp /usr/bin/false own; mv -f own program && echo replaced || echo denied; rm -f x.service && echo removed || echo denied;
			mv program "$OLDPWD/stolen" && mv "$OLDPWD/stolen" program && echo moved || echo denied; echo y > "$OLDPWD/own" && echo own; [ -e x.service ] || echo > x.service`,
		helpers: []string{"cp", "mv", "rm"},
	}.says(t, "denied denied denied denied denied own", "cut made replaced removed moved own")
}

// A52: who listens on an abstract socket outside of the service is not reached.
func TestA52_AbstractSockets(t *testing.T) {
	name := fmt.Sprintf("pghardend-e2e-%d", os.Getpid())
	l, err := net.Listen("unix", "@"+name)
	must(t, err)
	defer l.Close()
	landlockAttack{
		shell: "/usr/bin/perl", flag: "-MSocket",
		script: "-e" + `socket(S, AF_UNIX, SOCK_STREAM, 0); print connect(S, pack_sockaddr_un("\0` + name + `")) ? "connected " : "denied ";
			socket(L, AF_UNIX, SOCK_STREAM, 0); bind(L, pack_sockaddr_un("\0own` + name + `")) && listen(L, 1);
			socket(C, AF_UNIX, SOCK_STREAM, 0); print connect(C, pack_sockaddr_un("\0own` + name + `")) ? "own" : "$!"`,
	}.says(t, "denied own", "connected own")
}

// TCP ports: a service listens on its own and connects to those of its flows, the
// loopback interface included, on which netfilter lets everything pass.
func TestA48_PortsOnLoopback(t *testing.T) {
	var ports []uint16
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		defer l.Close()
		ports = append(ports, uint16(l.Addr().(*net.TCPAddr).Port))
	}
	landlockAttack{
		shell: "/usr/bin/perl", flag: "-MSocket",
		script: "-e" + fmt.Sprintf(`sub try { my ($f, $p) = @_; socket(my $s, AF_INET, SOCK_STREAM, 0);
				print $f->($s, pack_sockaddr_in($p, inet_aton("127.0.0.1"))) ? "done " : "denied " }
			sub c { connect($_[0], $_[1]) } sub b { bind($_[0], $_[1]) }
			try(\&c, %d); try(\&c, %d); try(\&b, 40123); try(\&b, 40124);`, ports[0], ports[1]),
		change: func(s *mac.RuleSet) {
			s.Connect.Allowed = []uint16{ports[1]}
			s.Bind.Allowed = []uint16{40124}
		},
	}.says(t, "denied done denied done", "done done done done")
}
