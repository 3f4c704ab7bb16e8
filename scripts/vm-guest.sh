#!/bin/bash
# Runs inside the file system of a virtual machine of test/vm while scripts/vm-image.sh builds it. What it sets up is that of a plain server,
# and beyond that only what tests need: no login, a runner of commands on a virtio port, services that tests start themselves.
set -euo pipefail

echo '/dev/vda / ext4 defaults 0 0' >/etc/fstab
echo vm >/etc/hostname
printf '127.0.0.1 localhost\n::1 localhost\n' >/etc/hosts
echo 'LANG=C.UTF-8' >/etc/default/locale
# With an empty one the first boot would enable services by their presets.
systemd-machine-id-setup

cat >/etc/systemd/system/vm-runner.service <<'END'
# Early, so that tests see the boot itself; outside of what it looks at.
[Unit]
Description=Runs the commands of tests
DefaultDependencies=no
After=local-fs.target systemd-tmpfiles-setup-dev.service
Before=basic.target
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/usr/local/sbin/vm-runner
Restart=always
RestartSec=1
# Like somebody who logged in, where SELinux is.
SELinuxContext=-unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023
OOMScoreAdjust=-1000
TasksMax=infinity
StandardOutput=journal+console

[Install]
WantedBy=sysinit.target
END
systemctl enable vm-runner.service systemd-networkd.service

# Tests start these.
systemctl disable postgresql.service pgpool2.service auditd.service
# Nobody waits for a network that is not there.
systemctl mask systemd-networkd-wait-online.service
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-firstboot.service getty@tty1.service serial-getty@ttyS0.service getty-static.service

# The journal is read from the host, and outlives a reboot.
mkdir -p /var/log/journal
if [[ -e /etc/selinux/config ]]; then
    # The kernel's command line says which mode it is.
    sed -i -e 's/^SELINUX=.*/SELINUX=permissive/' -e 's/^SELINUXTYPE=.*/SELINUXTYPE=default/' /etc/selinux/config
fi
rm -f /var/cache/apt/*.bin /var/lib/apt/lists/*_*
