#!/bin/bash
# Boots the host's own Debian with systemd as process 1: an overlay of its root, so that nothing of the host changes. There is no
# way out of its network, and of the kernel's settings only those of its network can be written.
#
#   booted.sh DIRECTORY SCRIPT    runs SCRIPT as a service of it; DIRECTORY is at /mnt, output goes to DIRECTORY/out
#
# The caller has put this process into a control group of its own and into new mount, network, UTS, IPC, pid and cgroup namespaces.
set -euo pipefail
shared=$1
script=$2

mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/shared /mnt/area
mount --bind "$shared" /mnt/shared
mount -t tmpfs -o size=3G tmpfs /mnt/area
mkdir /mnt/area/{upper,work,root}
mount -t overlay -o lowerdir=/,upperdir=/mnt/area/upper,workdir=/mnt/area/work overlay /mnt/area/root
cd /mnt/area/root

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind /proc/sys/net proc/sys/net
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
mkdir sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
for dir in run tmp dev; do
    mount -t tmpfs -o mode=0755 tmpfs $dir
done
chmod 1777 tmp
for node in null zero full random urandom tty; do
    : >dev/$node
    mount --bind /dev/$node dev/$node
done
mkdir -p dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx # PrivateDevices= makes one of it
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s /proc/self/fd dev/fd
: >dev/console
ip link set lo up

# Left out: what would touch the kernel or wait for hardware, and the services of the host.
rm -rf etc/systemd/system/*.wants etc/fstab
# The package is not here yet, whatever the host has.
rm -rf etc/pghardend var/lib/pghardend
: >etc/machine-id
mkdir -p etc/systemd/system/multi-user.target.wants
for unit in systemd-{udevd,networkd,resolved,timesyncd,logind,sysctl,modules-load,udev-trigger,firstboot,remount-fs,binfmt}.service \
    selinux-autorelabel-mark.service getty@tty1.service {apt-daily,apt-daily-upgrade,e2scrub_all,fstrim,man-db,dpkg-db-backup}.timer \
    sys-kernel-{config,debug,tracing}.mount dev-hugepages.mount; do
    ln -sf /dev/null "etc/systemd/system/$unit"
done
mount --bind /mnt/shared mnt
cat >etc/systemd/system/the-test.service <<UNIT
[Service]
Type=oneshot
ExecStart=/bin/bash /mnt/$script
StandardOutput=append:/mnt/out
StandardError=append:/mnt/out
ExecStopPost=/bin/systemctl poweroff --force --force
UNIT
ln -s ../the-test.service etc/systemd/system/multi-user.target.wants/
# A new root and not chroot(1): /proc/PID/exe of a process in mounts of its own is told from the root of the mounts.
mkdir old
pivot_root . old
mount --make-rshared / # as systemd has it on a machine: credentials are mounted by a child of its
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=pghardend TERM=dumb \
    chroot . /bin/sh -c 'umount -l /old && rmdir /old && exec /lib/systemd/systemd --show-status=0'
