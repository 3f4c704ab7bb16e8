// Package testvm boots virtual machines for tests: a Debian 12 or 13 with PostgreSQL, systemd as its first process and, on Debian 12, SELinux.
//
//	vm, err := testvm.Boot(ctx, testvm.Options{Image: testvm.Debian12, SELinux: "enforcing", Payload: dir})
//	defer vm.Close()
//	out, err := vm.Output(ctx, "getenforce")
//	err = vm.Reboot(ctx)
//
// # Design
//
// scripts/vm-image.sh builds a disk for each image once. A machine writes to an overlay of its own, so the disk stays as it is. What is to
// be tested comes on a second, read-only disk (Options.Payload, /payload in the machine) and is installed there by commands. The emulator is qemu
// without KVM, since continuous integration has none: a boot takes half a minute on an idle CPU.
//
// Commands go through a virtio port to a runner in the machine (test/vm/guest), which needs no network. It runs before the first target of systemd,
// so they see a boot while it goes on; Boot and Reboot wait until systemd is done. Machines have a network only if Options.Network is set: a
// bridge in a namespace that leads nowhere, in which the host can stand as well.
//
// # Hangs
//
// Whoever waits for a machine watches its serial console. A kernel panic, an emergency shell, an emulator that ended and a machine
// that neither answers nor says anything for two minutes are errors, with the end of the console in them. The whole of it is in
// build/vm/log/NAME.console.
//
// # Lifetime
//
// The emulator dies with the process that started it. Close removes the overlay and leaves the console. What a killed process left
// (namespaces, overlays) the next Boot removes.
//
// # Thread safety
//
// All methods may be called from several goroutines; commands run side by side.
package testvm
