# The agent in its own unit, without the drop-ins: all that it keeps is put back, and what it does not start is refused with the way out.
fact() { echo "fact $1: $2"; }
# until SECONDS CONDITION: the time that it took does not matter, only that it comes.
await() {
    for _ in $(seq $(($1 * 10))); do
        eval "$2" >/dev/null 2>&1 && { echo yes; return; }
        sleep 0.1
    done
    echo no
}
postmaster() { head -1 /var/lib/postgresql/15/main/postmaster.pid 2>/dev/null; }
flags() { awk -v p="$1" '$5 == p { print $6 }' "/proc/$pid/mountinfo"; }

rm -f /usr/sbin/policy-rc.d
rm -rf /etc/postgresql/15 /var/lib/postgresql/15
pg_createcluster 15 main >/dev/null
dpkg -i /mnt/new.deb
cp /mnt/pghardend.yaml /mnt/peers.yaml /etc/pghardend/
systemctl daemon-reload
timeout 60 systemctl start pghardend@postgres
fact adopted "$(await 40 "pghardend status | grep -q '^postgres  *ready'")"
fact ok "$(await 60 'pghardend status')"
pid=$(postmaster)
[ -n "$pid" ] || { journalctl --no-pager -u pghardend -u pghardend@postgres; exit; }
agent=$(systemctl show -p MainPID --value pghardend)
fact filtered "$(grep -E '^(NoNewPrivs|Seccomp):' /proc/$agent/status | tr -s '\t\n' ' ')"
fact capabilities "$(grep CapBnd /proc/$agent/status | tr -s '\t' ' ')"
fact verify "$(pghardend verify >/mnt/verify 2>&1; echo $?)"
pghardend status

# Rules and sets.
iptables -w -F PGHARDEND-IN
fact rules "$(await 20 "iptables -w -S PGHARDEND-IN | grep -q pghardend:postgres")"
ip6tables -w -F PGHARDEND-IN
fact rules6 "$(await 20 "ip6tables -w -S PGHARDEND-IN | grep -q pghardend:postgres")"
ipset flush pgh4-pgpool
fact sets "$(await 20 "ipset list pgh4-pgpool | grep -q 10.20.1.20")"
# Settings of the network, and of no other kind.
sysctl -qw net.ipv4.conf.all.accept_redirects=1
fact sysctl "$(await 20 '[ "$(sysctl -n net.ipv4.conf.all.accept_redirects)" = 0 ]')"
fact others-settings "$(nsenter -t $agent -m sh -c 'echo x 2>/dev/null >/proc/sysrq-trigger && echo writable || echo read-only')"
# Modes and owners.
chmod 0755 /var/lib/postgresql/15/main
fact mode "$(await 20 '[ "$(stat -c %a /var/lib/postgresql/15/main)" = 700 ]')"
chown root /var/lib/postgresql/15/main
fact owner "$(await 20 '[ "$(stat -c %U /var/lib/postgresql/15/main)" = postgres ]')"
chmod 0666 /etc/pghardend/peers.yaml
fact own-files "$(await 20 '[ "$(stat -c %a /etc/pghardend/peers.yaml)" = 644 ]')"
# What the host mounts later is put right in the service's mounts, by the other unit.
mkdir -p /srv/later
mount -t tmpfs tmpfs /srv/later
fact mounts "$(await 30 "flags /srv/later | grep -q noexec")"
fact who-repaired "$(systemctl show -p Result,ExecMainStatus --value pghardend-repair.service | tr '\n' ' ')"
fact ok-again "$(await 60 'pghardend status')"
fact asked "$(pghardend status | grep -o 'pghardend-repair.service was asked to' | sort -u)"
# The control: without it nobody does, and status says why.
systemctl stop pghardend-repair.path
mkdir -p /srv/alone
mount -t tmpfs tmpfs /srv/alone
fact nobody "$(await 20 "pghardend status | grep -q 'systemctl status pghardend-repair.path'")"
fact nobody-did "$(flags /srv/alone)"
systemctl start pghardend-repair.path
fact after-all "$(await 60 "flags /srv/alone | grep -q noexec")"
fact ok-after-all "$(await 60 'pghardend status')"
# Commits are answered by threads that the other unit has raised.
fact raised "$(await 20 "ps -L -o cls= -p $agent | grep -q FF")"
# A denial is heard of.
runuser -u postgres -- psql -XAtc "copy (select 1) to program 'true'" 2>&1
fact denial "$(await 20 "pghardend events | grep -qi 'denied'")"
fact denials-by "$(pghardend status --json | grep -o '"source": *"[a-z]*"' | head -1)"
# The agent goes and comes.
systemctl restart pghardend
fact readopted "$(await 60 "pghardend status | grep -q '^postgres  *ready  *$pid '")"
kill -9 $(systemctl show -p MainPID --value pghardend)
fact killed "$(await 60 "pghardend status | grep -q '^postgres  *ready  *$pid '")"
fact stop-refused "$(pghardend stop --service postgres 2>&1 | grep -o 'systemctl stop' | head -1) $(kill -0 $pid && echo runs)"
pghardend status
journalctl --no-pager -u pghardend -u pghardend-repair | tail -n 60

# A service that the agent is to start.
systemctl stop pghardend@postgres
sed -i '/start: external/d' /etc/pghardend/pghardend.yaml
systemctl restart pghardend
fact refused "$(await 60 "pghardend status | grep 'start: external' | grep 'enable --now pghardend@postgres' | grep -q children.conf")"
pghardend status
fact refused-runs "$(pgrep -u postgres -x postgres | wc -l)"
# The way that the message names, which is not there while it is tried again.
for _ in $(seq 100); do
    command=$(pghardend status | grep -o 'install -D .* && systemctl restart pghardend' | head -1)
    [ -z "$command" ] || break
    sleep 0.1
done
eval "$command"
fact started "$(await 60 "pghardend status | grep -q '^postgres  *ready'")"
fact started-ok "$(await 60 "pghardend verify")"
pid=$(postmaster)
fact confined "$(grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp|Seccomp_filters):' /proc/$pid/status | tr -s '\t\n' ' ')"
pghardend status
systemctl stop pghardend
fact left "$([ "$pid" = "$(postmaster)" ] && kill -0 $pid && echo runs)"
journalctl --no-pager -u pghardend | tail -n 40
runuser -u postgres -- kill -INT $pid
echo done
