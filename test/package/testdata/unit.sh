# A service in its own unit, launched without privileges; each directive that is taken away keeps it from starting. Lines as in life.sh.
fact() { echo "fact $1: $2"; }
sql() { runuser -u postgres -- psql -XAt -c "$1" 2>&1 | tr '\n' ' '; }
layer() { pghardend status | awk -v s="$1" -v l="$2" '$1 == s && $2 == l { $1 = $2 = ""; print }'; }
# await SECONDS COMMAND...: until it succeeds; what it said last is for the log.
await() {
    for _ in $(seq $((5 * $1))); do
        if "${@:2}" >/tmp/await 2>&1; then return; fi
        sleep 0.2
    done
    echo "not in time: ${*:2}"
    cat /tmp/await
}
dropin() {
    mkdir -p "/etc/systemd/system/$1.d"
    printf '[Service]\nRestart=no\n%s\n' "$2" >"/etc/systemd/system/$1.d/zz.conf"
    systemctl daemon-reload
}
# refused NAME DROPIN: what the unit's journal says of a start with it.
refused() {
    dropin pghardend@postgres.service "$2"
    local since
    since=$(date +%s.%N)
    timeout 30 systemctl start pghardend@postgres
    fact "refused-$1" "$? $(systemctl show -P ExecMainStatus pghardend@postgres) $(journalctl -o cat --since "@$since" -u pghardend@postgres | grep '^pghardend: ' | tail -1)"
    systemctl stop pghardend@postgres
    systemctl reset-failed pghardend@postgres
}

rm -f /usr/sbin/policy-rc.d
rm -rf /etc/postgresql/15 /var/lib/postgresql/15
pg_createcluster 15 main >/dev/null
systemctl daemon-reload
systemctl enable --now postgresql.service
fact control-program "$(sql "COPY (SELECT 1) TO PROGRAM 'cat >/tmp/control'"; cat /tmp/control)"
fact control-filters "$(grep Seccomp_filters /proc/$(head -1 /var/lib/postgresql/15/main/postmaster.pid)/status | tr -s '\t' ' ')"
systemctl disable --now postgresql.service >/dev/null 2>&1

dpkg -i /mnt/new.deb >/dev/null
cp /mnt/pghardend.yaml /mnt/peers.yaml /etc/pghardend/
systemctl enable --now pghardend@postgres
fact start $?
journalctl --no-pager -o cat -u pghardend@postgres | tail -20
unit=pghardend@postgres
pid=$(systemctl show -P MainPID $unit)
fact confined "$(grep -E '^(Uid|Cap...|NoNewPrivs|Seccomp):' /proc/$pid/status | tr -s '\t\n' ' ')"
fact record "$(stat -c '%U %a' /run/pghardend/launch/postgres.json) $(readlink /proc/$pid/fd/1 | sed 's/[0-9]//g') $(lsof -t /run/pghardend/launch/postgres.json 2>/dev/null | wc -l)"
fact filters "$(sed -n 's/.*"filters_before":\([0-9]*\).*/\1/p' /run/pghardend/launch/postgres.json) $(sed -n 's/Seccomp_filters:\t//p' /proc/$pid/status)"
await 30 sh -c "pghardend status | grep -q '^postgres  *ready'"
pghardend status
for l in dac capabilities seccomp mounts landlock; do fact "layer-$l" "$(layer postgres $l)"; done
pghardend verify >/tmp/verify
fact verify "$? $(tail -1 /tmp/verify)"
fact verify-gate "$(grep -c 'exec gate' /tmp/verify)"
fact verify-digest "$(grep -E "^$pid +seccomp +filter " /tmp/verify | tr -s ' ')"
fact program "$(sql "COPY (SELECT 1) TO PROGRAM 'cat >/tmp/confined'")"
fact pgbench "$(runuser -u postgres -- pgbench -i -q -s 1 >/dev/null 2>&1; runuser -u postgres -- pgbench -n -c 4 -t 100 2>/dev/null | grep -E 'failed|processed' | tr '\n' ' ')"
fact reload "$(kill -HUP $pid && sql 'SELECT pg_reload_conf()')"
# A drill has what this service has, and not what the agent's launch would add.
pghardend drill --rows A36,A42 --ablate >/tmp/drill 2>/tmp/drill.err
fact drill "$? $(tail -1 /tmp/drill)"
fact drill-note "$(grep -c 'no exec gate' /tmp/drill)"
fact drill-gate "$(awk '$1 == "A36"' /tmp/drill | grep -c '[:, ]seccomp')"
fact drill-proc "$(awk '$2 == "proc-mem" { print $3, $5, $6 }' /tmp/drill)"
cat /tmp/drill.err /tmp/drill
# Another profile is told of here too, though the record of the launch before is gone.
sql "ALTER SYSTEM SET huge_pages = 'off'" >/dev/null
systemctl restart pghardend@postgres
await 30 sh -c "pghardend events | grep -q 'another profile'"
fact profile-event "$(pghardend events | grep -o 'started with another profile: .*')"
pid=$(systemctl show -P MainPID $unit)

# A service without a data directory is found by the record of its launch, also by an agent that comes later.
cat >/etc/pgpool2/pgpool.conf <<CONF
backend_clustering_mode = 'streaming_replication'
backend_hostname0 = '/var/run/postgresql'
backend_port0 = 5432
sr_check_period = 0
CONF
cp /mnt/pgpool.yaml /etc/pghardend/pghardend.yaml
systemctl reload pghardend
await 30 grep -q pgpool /run/pghardend/pghardend.yaml
systemctl start pghardend@pgpool
fact pgpool $?
journalctl --no-pager -o cat -u pghardend@pgpool | tail -5
systemctl restart pghardend
await 30 sh -c "pghardend status | grep -q '^pgpool  *ready'"
await 30 sh -c "runuser -u postgres -- psql -h /var/run/postgresql -p 9999 -XAtc 'select 1'"
fact pgpool-query "$(runuser -u postgres -- psql -h /var/run/postgresql -p 9999 -XAtc 'select 40+2' 2>&1 | tr '\n' ' ')"
pghardend verify >/tmp/verify
fact pgpool-verify "$? $(tail -1 /tmp/verify)"
fact pgpool-layers "$(pghardend status | awk '$1 == "pgpool" && $3 $4 == "yesyes" { printf "%s ", $2 }')"
systemctl stop pghardend@pgpool
cp /mnt/pghardend.yaml /etc/pghardend/pghardend.yaml

# A filter of its own that is not there does not hide behind those of the unit.
systemctl stop $unit
sed -i 's/^    start: external/&\n    mode: complain/' /etc/pghardend/pghardend.yaml
systemctl reload pghardend
await 30 grep -q complain /run/pghardend/pghardend.yaml
systemctl start $unit
await 30 sh -c "pghardend status | grep -q '^postgres  *ready'"
fact complain "$(sed -n 's/Seccomp_filters:\t//p' /proc/$(systemctl show -P MainPID $unit)/status) $(layer postgres seccomp)"
sed -i '/mode: complain/d' /etc/pghardend/pghardend.yaml
systemctl reload pghardend
await 30 sh -c '! grep -q complain /run/pghardend/pghardend.yaml'
await 30 sh -c "! pghardend status | grep 'postgres  *seccomp' | grep -q complain"
fact complained "$(layer postgres seccomp)"
systemctl stop $unit

refused capability CapabilityBoundingSet=CAP_NET_RAW
refused group SupplementaryGroups=adm
refused user User=nobody
refused noexec NoExecPaths=
refused read-only BindReadOnlyPaths=
refused hidden InaccessiblePaths=
refused devices PrivateDevices=no
refused record StandardOutput=journal
refused descriptor StandardError=inherit
fact descriptor "$(tail -1 /run/pghardend/launch/postgres.json)" # standard error is that file then
refused data "$(printf '%s\n' ReadWritePaths= ReadOnlyPaths=/var/lib/postgresql)"
refused nnp "$(printf '%s\n' NoNewPrivileges=no SystemCallArchitectures= SystemCallFilter= RestrictAddressFamilies= RestrictNamespaces=no \
    RestrictRealtime=no RestrictSUIDSGID=no LockPersonality=no MemoryDenyWriteExecute=no PrivateDevices=no ProtectKernelTunables=no \
    ProtectKernelModules=no ProtectKernelLogs=no ProtectClock=no ProtectHostname=no)"
rm /etc/systemd/system/$unit.service.d/zz.conf

# Debian's own unit with the drop-in.
install -D -m 0644 /usr/share/pghardend/systemd/postgresql-debian.conf /etc/systemd/system/postgresql@15-main.service.d/pghardend.conf
systemctl daemon-reload
systemctl start postgresql@15-main
fact debian $?
journalctl --no-pager -o cat -u postgresql@15-main | tail -5
await 30 sh -c "pghardend status | grep -q '^postgres  *ready'"
pghardend verify >/tmp/verify
fact debian-verify "$? $(tail -1 /tmp/verify)"
fact debian-exposure "$(systemd-analyze security postgresql@15-main.service | sed -n 's/.*exposure level.*: \([0-9.]*\) .*/\1/p')"
systemctl reload postgresql@15-main
fact debian-reload $?
systemctl stop postgresql@15-main
fact debian-stop "$(systemctl is-active postgresql@15-main) $(systemctl show -P Result postgresql@15-main)"
echo done
