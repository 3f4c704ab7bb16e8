package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pghardend/pghardend/internal/launch"
)

// The helpers of a service are looked at like its program, and so is what their
// first lines name.
func TestF27_LaunchHelpers(t *testing.T) {
	const cat = "/usr/bin/cat"
	dir := launchDir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	script := func(name, first string) string {
		launchWrite(t, path(name), []byte(first+"\nexit 0\n"), 0o755)
		return path(name)
	}
	file := func(name string, uid int, mode uint32) string {
		launchCopy(t, cat, path(name), 0o755)
		launchOwn(t, path(name), uid)
		launchMode(t, path(name), mode)
		return path(name)
	}
	owned := func(name string, uid int, mode uint32) string {
		script(name, "#!/bin/sh")
		launchOwn(t, path(name), uid)
		launchMode(t, path(name), mode)
		return path(name)
	}
	link := func(name, to string, uid int) string {
		launchSymlink(t, to, path(name))
		if err := os.Lchown(path(name), uid, uid); err != nil {
			t.Fatal(err)
		}
		return path(name)
	}
	open := launchMkdir(t, path("open"), 0o755)
	launchWrite(t, path("open/failover"), []byte("#!/bin/sh\n"), 0o755)
	launchCopy(t, cat, path("open/x"), 0o755)
	launchMode(t, open, 0o777)

	for name, c := range map[string]struct{ helper, word string }{
		"relative":                       {"failover", "absolute"},
		"missing":                        {path("missing"), "services.test.helpers"},
		"writable by all":                {owned("world", 0, 0o757), "chmod go-w"},
		"the service user's":             {owned("own", launchNobody, 0o755), "nobody"},
		"another user's":                 {owned("other", 4711, 0o755), "uid 4711"},
		"setuid":                         {file("setuid", 0, 0o4755), "setuid"},
		"not executable":                 {owned("plain", 0, 0o644), "chmod a+x"},
		"symlink":                        {link("link", cat, 0), "name " + cat},
		"writable directory":             {path("open/failover"), "chmod go-w"},
		"interpreter missing":            {script("s1", "#!"+path("missing")), "cannot look at"},
		"interpreter by PATH":            {script("s2", "#!/usr/bin/env sh"), "PATH"},
		"interpreter relative":           {script("s3", "#!sh"), "no absolute path"},
		"interpreter the user's":         {script("s4", "#!"+file("shell", launchNobody, 0o755)), "nobody"},
		"interpreter writable":           {script("s5", "#!"+file("soft", 0, 0o777)), "chmod go-w"},
		"interpreter setuid":             {script("s6", "#!"+file("power", 0, 0o4755)), "setuid"},
		"interpreter by the user's link": {script("s7", "#!"+link("sh", cat, launchNobody)), "symbolic link " + path("sh")},
		"interpreter by a far link":      {script("s8", "#!"+link("far", path("sh"), 0)), "symbolic link " + path("sh")},
		"interpreter in an open place":   {script("s9", "#!"+link("into", path("open/x"), 0)), "directory " + open},
		"interpreter a script":           {script("s10", "#!"+script("inner", "#!/bin/sh")), "a script itself"},
		"endless links":                  {script("s11", "#!"+link("loop", path("loop"), 0)), "more than 40"},
		"DOS line ends":                  {script("s12", "#!/bin/sh\r"), "DOS"},
	} {
		t.Run(name, func(t *testing.T) {
			in := launchStatus()
			in.Helpers = []string{cat, c.helper}
			launchRun(t, in).refused(t, launch.StepBinary, c.word)
		})
	}
	in := launchStatus()
	in.Helpers = []string{cat, script("good", "#!/bin/sh -e"), script("linked", "#!"+link("root", "/bin/sh", 0))}
	launchRun(t, in).works(t)
}
