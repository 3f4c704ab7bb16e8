# Install, configure, run; upgrade under load; remove; purge. Each line of the form "fact NAME: VALUE" is for the test.
fact() { echo "fact $1: $2"; }
rules() { iptables -w -S | grep -c PGHARDEND || true; }
postmaster() { head -1 /var/lib/postgresql/15/main/postmaster.pid 2>/dev/null; }

rm -f /usr/sbin/policy-rc.d
rm -rf /etc/postgresql/15 /var/lib/postgresql/15
pg_createcluster 15 main >/dev/null
systemctl daemon-reload
systemctl enable --now postgresql.service
fact distribution "$(systemctl is-active postgresql@15-main.service)"

# 1 of 3
dpkg -i /mnt/old.deb
fact install $?
fact inert "$(systemctl is-enabled pghardend.service) $(systemctl is-active pghardend.service) $(rules) rules"
fact failed-after-install "$(systemctl --failed --no-legend | wc -l)"

# The completions of the package, as each shell loads them for people. bash and zsh get half a word and a tab on a terminal, and run what they make of
# it; fish says what it would offer.
printf '. /usr/share/bash-completion/bash_completion\n' >/tmp/bashrc
mkdir -p /tmp/zsh && echo 'autoload -Uz compinit && compinit -u -D' >/tmp/zsh/.zshrc
typed() { printf 'pghardend vers\t\nexit\n' | TERM=dumb ZDOTDIR=/tmp/zsh timeout 60 script -qec "$*" /dev/null | grep -ao '^pghardend 1\.0 '; }
fact bash "$(typed bash --noprofile --rcfile /tmp/bashrc -i)"
fact zsh "$(typed zsh -d -i)"
fact fish "$(HOME=/tmp timeout 60 fish -c 'complete -C "pghardend ver"' | cut -f 1 | tr '\n' ' ')"

# 2 of 3
cp /mnt/pghardend.yaml /mnt/peers.yaml /etc/pghardend/

# 3 of 3
systemctl enable --now pghardend@postgres
fact start $?
systemctl status --no-pager -l pghardend pghardend@postgres | cat
journalctl --no-pager -u pghardend@postgres | tail -20; tail -5 /var/log/postgresql/*
fact units "$(systemctl is-active pghardend.service) $(systemctl is-active pghardend@postgres.service) $(systemctl is-active postgresql@15-main.service)"
pid=$(postmaster)
fact main "$([ "$pid" = "$(systemctl show -p MainPID --value pghardend@postgres)" ] && echo same)"
fact confined "$(grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/$pid/status | tr -s '\t\n' ' ')"
fact rules "$([ "$(rules)" -gt 10 ] && echo some)"
for _ in $(seq 30); do
    systemctl start pghardend && pghardend status | grep -q '^postgres  *ready' && break
    sleep 1
done
pghardend status | cat
fact adopted "$(pghardend status | grep -o "^postgres  *ready  *$pid " | tr -s " ")"
fact psql "$(runuser -u postgres -- psql -XAtc 'select 40+2' 2>&1)"
fact agent-caps "$(grep CapBnd /proc/$(systemctl show -p MainPID --value pghardend)/status | tr -s '\t' ' ')"

# Upgrade and downgrade under load.
runuser -u postgres -- pgbench -i -q -s 1 >/dev/null 2>&1
runuser -u postgres -- pgbench -n -c 4 -j 1 -T 12 >/mnt/pgbench 2>&1 &
load=$!
agent=$(systemctl show -p MainPID --value pghardend)
dpkg -i /mnt/new.deb
fact upgrade $?
fact new-agent "$([ "$agent" != "$(systemctl show -p MainPID --value pghardend)" ] && systemctl is-active pghardend)"
dpkg -i /mnt/old.deb
fact downgrade $?
systemctl stop pghardend
fact stopped "$(systemctl is-active pghardend) $([ "$(rules)" -gt 10 ] && echo rules) $([ "$pid" = "$(postmaster)" ] && kill -0 $pid && echo postgres)"
systemctl start pghardend
wait $load
fact pgbench "$? $(grep -E 'failed|processed' /mnt/pgbench | tr '\n' ' ')"
fact same-postmaster "$([ "$pid" = "$(postmaster)" ] && echo same)"

dpkg -r pghardend
fact remove $?
fact after-remove "$([ "$(rules)" -gt 10 ] && echo rules) $(kill -0 $pid && echo postgres) $(ls /etc/pghardend /var/lib/pghardend | grep -c .)"
mkdir -p /var/lib/pghardend/mine && touch /var/lib/pghardend/mine/PG_VERSION
dpkg -P pghardend
fact purge-with-data "$(ls -d /etc/pghardend /var/lib/pghardend/mine 2>/dev/null | tr '\n' ' ')"
fact data "$(ls /var/lib/postgresql/15/main/PG_VERSION)"
dpkg -i /mnt/old.deb >/dev/null && rm -rf /var/lib/pghardend/mine && dpkg -P pghardend
fact purge "$(ls -d /etc/pghardend /var/lib/pghardend /run/pghardend 2>/dev/null | wc -l)"
echo done
