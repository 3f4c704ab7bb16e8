// Command cmd boots a virtual machine of test/vm for people, and runs commands in it; scripts/vm calls it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/pghardend/pghardend/test/vm/testvm"
)

const usage = `usage, as root:
  scripts/vm up [--name NAME] [--selinux enforcing|permissive [--base-policy]] [--payload DIR] debian12|debian13 [SCRIPT]
      boots a machine, builds its image first if there is none. With SCRIPT: runs it with bash and ends with its status.
      Without: stays until Ctrl-C, and the following reach the machine from elsewhere. DIR is /payload in it;
      --base-policy is SELinux without the module of policies/selinux.
  scripts/vm run NAME SCRIPT           runs a script; - is one from standard input
  scripts/vm put NAME FILE PATH [MODE] writes a file
  scripts/vm reboot NAME               reboots it and waits until it answers again
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code, err := run(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "vm: %v\n", err)
		code = max(code, 1)
	}
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) (int, error) {
	switch {
	case len(args) > 1 && args[0] == "up":
		return up(ctx, args[1:])
	case len(args) == 3 && args[0] == "run":
		script := args[2]
		if script == "-" {
			data, err := io.ReadAll(os.Stdin)
			if err != nil {
				return 1, err
			}
			script = string(data)
		}
		return inMachine(ctx, args[1], script)
	case len(args) == 2 && args[0] == "reboot":
		return 0, reboot(ctx, args[1])
	case (len(args) == 4 || len(args) == 5) && args[0] == "put":
		return 0, put(ctx, args[1:])
	}
	fmt.Fprint(os.Stderr, usage)
	return 2, nil
}

func up(ctx context.Context, args []string) (code int, err error) {
	o := testvm.Options{Progress: os.Stderr}
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	flags.StringVar(&o.Name, "name", "", "")
	flags.StringVar(&o.SELinux, "selinux", "", "")
	flags.BoolVar(&o.BasePolicy, "base-policy", false, "")
	flags.StringVar(&o.Payload, "payload", "", "")
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	if err := flags.Parse(args); err != nil || flags.NArg() < 1 || flags.NArg() > 2 {
		flags.Usage()
		return 2, nil
	}
	o.Image = testvm.Image(flags.Arg(0))
	if o.Name == "" {
		o.Name = string(o.Image)
	}
	vm, err := testvm.Boot(ctx, o)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	if flags.NArg() == 2 {
		return show(vm.Run(ctx, flags.Arg(1), nil))
	}
	vm.Release()
	fmt.Fprintf(os.Stderr, "vm: scripts/vm run %s SCRIPT runs something in it; Ctrl-C ends it\n", o.Name)
	if err := vm.Wait(ctx); err != nil {
		return 1, err
	}
	return 0, nil
}

func inMachine(ctx context.Context, name, script string) (int, error) {
	c, err := testvm.Dial(ctx, name)
	if err != nil {
		return 1, err
	}
	defer c.Close()
	return show(c.Run(ctx, script, nil))
}

func reboot(ctx context.Context, name string) error {
	c, err := testvm.Dial(ctx, name)
	if err != nil {
		return err
	}
	defer c.Close()
	before, err := c.Boot(ctx)
	if err != nil {
		return err
	}
	if _, err := c.Output(ctx, "systemctl --no-block reboot"); err != nil {
		return err
	}
	for {
		// What is asked while the machine goes down is lost.
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		now, err := c.Boot(try)
		cancel()
		if ctx.Err() != nil || err == nil && now != before {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

func put(ctx context.Context, args []string) error {
	mode := uint64(0o644)
	if len(args) == 4 {
		var err error
		if mode, err = strconv.ParseUint(args[3], 8, 32); err != nil {
			return errors.New("the mode is an octal number such as 0755")
		}
	}
	data, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	c, err := testvm.Dial(ctx, args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Write(ctx, args[2], uint32(mode), data)
}

func show(r testvm.Result, err error) (int, error) {
	fmt.Print(r.Stdout)
	fmt.Fprint(os.Stderr, r.Stderr)
	return r.Exit, err
}
