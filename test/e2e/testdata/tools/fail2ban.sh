# What fail2ban 1.0.2 does to the rules: the commands of its actions
# iptables-multiport and iptables-allports. $1 is the step; $I4 and $I6 are the
# commands.
set -eu

add() { # command, chain, match
	{ $1 -w -C "$2" -j RETURN >/dev/null 2>&1; } || { $1 -w -N "$2" || true; $1 -w -A "$2" -j RETURN; }
	# shellcheck disable=SC2086 # the match is several words
	{ $1 -w -C INPUT $3 -j "$2" >/dev/null 2>&1; } || $1 -w -I INPUT $3 -j "$2"
}

remove() {
	# shellcheck disable=SC2086
	$1 -w -D INPUT $3 -j "$2"
	$1 -w -F "$2"
	$1 -w -X "$2"
}

jails() {
	for i in "$I4" "$I6"; do
		$1 "$i" f2b-sshd "-p tcp -m multiport --dports 22,2222"
		$1 "$i" f2b-recidive "-p tcp"
	done
}

case $1 in
start) jails add ;;
ban)
	$I4 -w -I f2b-sshd 1 -s 10.0.0.5 -j REJECT --reject-with icmp-port-unreachable
	$I6 -w -I f2b-recidive 1 -s fd00:10::99 -j REJECT --reject-with icmp6-port-unreachable
	;;
unban) $I4 -w -D f2b-sshd -s 10.0.0.5 -j REJECT --reject-with icmp-port-unreachable ;;
restart) jails remove && jails add ;;
stop) jails remove ;;
esac
