package testvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// runDir has a directory for each machine with its socket: the path of one must be short.
const runDir = "/run/pghardend-vm"

// Options say what to boot.
type Options struct {
	Image Image
	// Name is unique on the host; default: that of the image and the process. The console is in NAME.console.
	Name string
	// SELinux is enforcing, permissive or empty, which is a kernel without it. For Debian12. The module of policies/selinux is in the policy.
	SELinux string
	// BasePolicy leaves the module out: the policy is the distribution's own, as where a package is installed.
	BasePolicy bool
	// Payload is a directory whose content is in /payload, read-only; its files are root's.
	Payload string
	// Network and the machine's addresses in it, each with its prefix's length. Without one there is no interface.
	Network   *Network
	Addresses []string
	// Append are more words for the kernel's command line.
	Append string
	// Progress is told what is done; default: nobody.
	Progress io.Writer
}

// VM is a machine that has booted.
type VM struct {
	*Client
	opts    Options
	dir     string   // overlay and payload
	args    []string // of the emulator
	console *console
	exited  chan struct{} // closed when the emulator has ended
	ended   error         // why, then
	process *os.Process
	boot    string // the kernel's id of the boot
}

func socketPath(name string) string { return filepath.Join(runDir, name, "runner") }

// booted counts the machines of this process.
var booted atomic.Int32

// Boot starts a machine and returns when systemd has started all that it should. It needs root.
func Boot(ctx context.Context, o Options) (*VM, error) {
	if o.Name == "" {
		o.Name = fmt.Sprintf("%s-%d-%d", o.Image, os.Getpid(), booted.Add(1))
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	image, err := Build(ctx, o.Image, o.Progress)
	if err != nil {
		return nil, err
	}
	vm := &VM{opts: o}
	if err := vm.prepare(ctx, image); err != nil {
		return nil, fmt.Errorf("cannot prepare the machine %s: %w", o.Name, err)
	}
	if err := vm.powerOn(ctx); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	if err := vm.settle(ctx); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	return vm, nil
}

// prepare makes the disks, the interface and the command line.
func (vm *VM) prepare(ctx context.Context, image string) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	sweepMachines(runDir)
	sweepMachines(filepath.Join(cache, "run"))
	vm.dir = filepath.Join(cache, "run", vm.opts.Name)
	logs := filepath.Join(cache, "log")
	for _, dir := range []string{vm.dir, filepath.Dir(socketPath(vm.opts.Name)), logs} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	for _, dir := range []string{vm.dir, filepath.Dir(socketPath(vm.opts.Name))} {
		path := filepath.Join(dir, "pid")
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("there is a machine of this name (%s): %w", path, err)
		}
		fmt.Fprint(f, os.Getpid())
		f.Close()
	}
	vm.console = newConsole(filepath.Join(logs, vm.opts.Name+".console"))
	if err := os.RemoveAll(vm.console.path); err != nil {
		return err
	}

	base := filepath.Join(image, "root.img")
	if vm.opts.SELinux != "" && !vm.opts.BasePolicy {
		if base, err = withPolicy(ctx, image, vm.opts.Progress); err != nil {
			return err
		}
	}
	overlay := filepath.Join(vm.dir, "root.qcow2")
	if err := tool(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, overlay); err != nil {
		return err
	}
	cmdline := "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off no_timer_check panic=0 quiet systemd.show_status=1 " + vm.opts.Append
	if vm.opts.SELinux != "" {
		cmdline += " security=selinux selinux=1 enforcing=" + strconv.Itoa(map[string]int{"enforcing": 1}[vm.opts.SELinux])
	}
	vm.args = []string{"qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
		// A thread for each CPU would execute breakpoints of patches to the kernel that are over (text_poke), which is a panic.
		"-accel", "tcg,thread=single", "-cpu", "max,-cx16", "-m", "2G", "-smp", "2",
		"-kernel", filepath.Join(image, "vmlinuz"), "-initrd", filepath.Join(image, "initrd"), "-append", cmdline,
		// Nothing has to survive a crash of the host.
		"-drive", "file=" + overlay + ",if=virtio,format=qcow2,cache=unsafe",
		"-chardev", "file,id=console,append=on,path=" + vm.console.path, "-serial", "chardev:console",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=runner,server=on,wait=off,path=" + socketPath(vm.opts.Name),
		"-device", "virtserialport,chardev=runner,name=runner"}
	if vm.opts.Payload != "" {
		path := filepath.Join(vm.dir, "payload.img")
		if err := disk(ctx, vm.opts.Payload, path); err != nil {
			return err
		}
		vm.args = append(vm.args, "-drive", "file="+path+",if=virtio,format=raw,readonly=on")
	}
	if vm.opts.Network != nil {
		tap, number, err := vm.opts.Network.tap(ctx)
		if err != nil {
			return err
		}
		vm.args = append(vm.args, "-netdev", "tap,id=lan,script=no,downscript=no,ifname="+tap,
			"-device", fmt.Sprintf("virtio-net-pci,netdev=lan,romfile=,mac=52:54:00:20:01:%02x", number))
		vm.args = append([]string{"ip", "netns", "exec", vm.opts.Network.Namespace}, vm.args...)
	}
	return nil
}

// powerOn starts the emulator and connects to the machine's port.
func (vm *VM) powerOn(ctx context.Context) error {
	vm.console.forget()
	vm.boot = ""
	vm.exited = make(chan struct{})
	var stderr strings.Builder
	cmd := exec.Command(vm.args[0], vm.args[1:]...) //nolint:noctx // it outlives the call and ends with Close
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The signal is for the death of the thread that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			vm.ended = fmt.Errorf("the emulator has ended (%w): %s", errors.Join(cmd.Wait(), errors.New(cmd.ProcessState.String())), stderr.String())
			close(vm.exited)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("cannot start the emulator: %w", err)
	}
	vm.process = cmd.Process
	return vm.await(ctx, "the emulator", func(ctx context.Context) error {
		client, err := Dial(ctx, vm.opts.Name)
		vm.Client = client
		return err
	})
}

// settle waits until the machine's runner answers from a boot other than the last one, and until systemd has no more to do.
func (vm *VM) settle(ctx context.Context) error {
	began := time.Now()
	last := vm.boot
	err := vm.await(ctx, "an answer", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		boot, err := vm.Boot(ctx)
		if err == nil && boot == last {
			return errors.New("it has not gone down yet")
		}
		vm.boot = boot
		return err
	})
	if err != nil {
		return err
	}
	if err := vm.configure(ctx); err != nil {
		return err
	}
	var state string
	err = vm.await(ctx, "the end of the boot", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		r, err := vm.Client.Run(ctx, "systemctl is-system-running", nil)
		if err != nil {
			return err
		}
		vm.console.alive()
		if state = strings.TrimSpace(r.Stdout); state != "running" && state != "degraded" {
			return fmt.Errorf("systemd says %q: %s", state, said(r))
		}
		return nil
	})
	if err == nil {
		fmt.Fprintf(vm.opts.Progress, "vm: %s: up after %s (%s)\n", vm.opts.Name, time.Since(began).Round(time.Second), state)
	}
	return err
}

// configure mounts the payload and sets the network up, at the first boot for later ones as well.
func (vm *VM) configure(ctx context.Context) error {
	var script strings.Builder
	if vm.opts.Payload != "" {
		fmt.Fprintln(&script, "mountpoint -q /payload || { mkdir -p /payload && mount -o ro /dev/vdb /payload; } || exit")
	}
	if len(vm.opts.Addresses) > 0 {
		unit := "[Match]\nName=eth0\n\n[Network]\nIPv6AcceptRA=no\nLinkLocalAddressing=ipv6\nConfigureWithoutCarrier=yes\n"
		for _, address := range vm.opts.Addresses {
			unit += "\n[Address]\nAddress=" + address + "\nDuplicateAddressDetection=none\n"
		}
		fmt.Fprintf(&script, "f=/etc/systemd/network/lan.network; [ -e $f ] || { printf '%%s' '%s' >$f.new && mv $f.new $f && networkctl reload; } || exit\n", unit)
	}
	if script.Len() == 0 {
		return nil
	}
	return vm.await(ctx, "disks and network", func(ctx context.Context) error {
		_, err := vm.Client.Output(ctx, script.String())
		return err
	})
}

// Run is Client.Run, and gives up as well when the machine hangs.
func (vm *VM) Run(ctx context.Context, script string, stdin []byte) (Result, error) {
	ctx, hung := context.WithCancelCause(ctx)
	defer hung(nil)
	go vm.watch(ctx, hung)
	r, err := vm.Client.Run(ctx, script, stdin)
	if cause := context.Cause(ctx); errors.Is(cause, ErrHung) {
		return r, fmt.Errorf("cannot run %q in the machine %s: %w\n%s", brief(script), vm.opts.Name, cause, vm.console.tail())
	}
	if errors.Is(err, errHungUp) {
		<-vm.exited // nobody else hangs up
		err = fmt.Errorf("%w: %w\n%s", err, vm.ended, vm.console.tail())
	}
	return r, err
}

// watch asks the runner for a sign of life every now and then, since a script may be silent for long.
func (vm *VM) watch(ctx context.Context, hung context.CancelCauseFunc) {
	vm.console.alive()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Second):
		}
		ask, cancel := context.WithTimeout(ctx, 10*time.Second)
		if _, err := vm.Boot(ask); err == nil {
			vm.console.alive()
		}
		cancel()
		if err := vm.console.check(time.Now()); err != nil {
			hung(err)
		}
	}
}

// Output is Client.Output, and gives up as well when the machine hangs.
func (vm *VM) Output(ctx context.Context, script string) (string, error) {
	return output(ctx, vm, script)
}

// Write is Client.Write, and gives up as well when the machine hangs.
func (vm *VM) Write(ctx context.Context, path string, mode uint32, data []byte) error {
	return write(ctx, vm, path, mode, data)
}

// Reboot has systemd restart the machine and waits until it is up again.
func (vm *VM) Reboot(ctx context.Context) error {
	vm.console.forget()
	if _, err := vm.Output(ctx, "systemctl --no-block reboot"); err != nil {
		return err
	}
	return vm.settle(ctx)
}

// Release hangs up, so that other processes can Dial; after that, only Wait and Close.
func (vm *VM) Release() { vm.Client.Close() }

// Wait returns when the emulator has ended or ctx is done.
func (vm *VM) Wait(ctx context.Context) error {
	select {
	case <-vm.exited:
		return vm.ended
	case <-ctx.Done():
		return nil
	}
}

// Console is what the serial console has said since the last boot.
func (vm *VM) Console() string { return vm.console.text() }

// Close ends the machine and removes its disks. The console stays.
func (vm *VM) Close() error {
	err := errors.Join(vm.powerOff(), os.RemoveAll(vm.dir), os.RemoveAll(filepath.Dir(socketPath(vm.opts.Name))))
	if left, readErr := os.ReadDir(runDir); readErr == nil && len(left) == 0 {
		_ = os.Remove(runDir) // unless somebody boots just now
	}
	return err
}

func (vm *VM) powerOff() error {
	if vm.Client != nil {
		vm.Client.Close()
	}
	if vm.process == nil {
		return nil
	}
	if err := vm.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-vm.exited
	return nil
}

// await calls check until it returns nil, and gives up when the machine is dead, with the end of its console.
func (vm *VM) await(ctx context.Context, what string, check func(context.Context) error) error {
	for {
		last := check(ctx)
		if last == nil {
			return nil
		}
		err := vm.console.check(time.Now())
		select {
		case <-vm.exited:
			err = vm.ended
		default:
			err = errors.Join(err, ctx.Err())
		}
		if err != nil {
			return fmt.Errorf("cannot await %s of the machine %s: %w; last: %w\n%s", what, vm.opts.Name, err, last, vm.console.tail())
		}
		select {
		case <-vm.exited:
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}
