// Command attack tries, as whoever runs it, what a superuser of the database could with native code, and writes for each act a line: its name, a tab,
// and "done" or why not. It changes nothing: what it opens for writing it does not write to. test/vm runs it in and out of SELinux's domain.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(context.Background(), os.Stdout, os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out io.Writer, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: attack PROGRAM PID: a program in the data directory, a process of the server")
	}
	victim, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for _, act := range acts(ctx, args[0], victim) {
		result := "done"
		if err := act.try(); err != nil {
			result = err.Error()
		}
		if _, err := fmt.Fprintf(out, "%s\t%s\n", act.name, result); err != nil {
			return err
		}
	}
	return nil
}

type act struct {
	name string
	try  func() error
}

func acts(ctx context.Context, dropped string, victim int) []act {
	memory := fmt.Sprintf("/proc/%d/mem", victim)
	return []act{
		{"A36 shell", func() error { return exec.CommandContext(ctx, "/bin/sh", "-c", ":").Run() }},
		{"A38 library", func() error { return mapCode(dropped) }},
		{"A40 dropped", func() error { return exec.CommandContext(ctx, dropped).Run() }},
		{"A40 loader", func() error { return exec.CommandContext(ctx, "/lib64/ld-linux-x86-64.so.2", dropped).Run() }},
		{"A40 memfd", func() error { return runFromMemory(ctx, dropped) }},
		{"A42 ptrace", func() error { return attach(victim) }},
		{"A42 memory", func() error { return openTo(memory, os.O_RDWR) }},
		{"A42 process_vm_readv", func() error { return readMemory(victim) }},
		{"A46 alg", func() error { return socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0) }},
		{"A46 packet", func() error { return socket(unix.AF_PACKET, unix.SOCK_RAW, 0) }},
		{"A46 raw", func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }},
		{"A46 vsock", func() error { return socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0) }},
		{"A46 netlink audit", func() error { return socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT) }},
		{"A46 netlink netfilter", func() error { return socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER) }},
		{"A49 pg_hba.conf", func() error { return openTo("/etc/postgresql/15/main/pg_hba.conf", os.O_WRONLY|os.O_APPEND) }},
		{"A49 configuration", func() error { return openTo("/etc/pghardend/pghardend.yaml", os.O_WRONLY|os.O_APPEND) }},
		{"A50 program", func() error { return openTo("/usr/bin/true", os.O_WRONLY) }},
		{"A50 unit", func() error { return openTo("/etc/systemd/system/pghardend.service", os.O_WRONLY) }},
		{"A50 agent's socket", func() error { return connect("/run/pghardend/control.sock") }},
	}
}

// mapCode is what LOAD does to a library.
func mapCode(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	code, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	if err == nil {
		err = unix.Munmap(code)
	}
	return err
}

func runFromMemory(ctx context.Context, path string) error {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	// Inherited, so that the path below is the child's as well.
	fd, err := unix.MemfdCreate("attack", 0)
	if err != nil {
		return err
	}
	memory := os.NewFile(uintptr(fd), "memfd")
	defer memory.Close()
	if _, err := io.Copy(memory, from); err != nil {
		return err
	}
	return exec.CommandContext(ctx, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)).Run()
}

func attach(pid int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return err
	}
	// A tracer that ends lets go; to detach, the process would have to be stopped.
	return nil
}

func readMemory(pid int) error {
	var word [8]byte
	local := []unix.Iovec{{Base: &word[0], Len: 8}}
	_, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: 4096, Len: 8}}, 0)
	if errors.Is(err, unix.EFAULT) {
		return nil // nothing is there, and it would have been read
	}
	return err
}

func socket(domain, typ, proto int) error {
	fd, err := unix.Socket(domain, typ, proto)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

func openTo(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0)
	if err == nil {
		err = f.Close()
	}
	return err
}

func connect(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Connect(fd, &unix.SockaddrUnix{Name: path}), unix.Close(fd))
}
