# What ufw 0.36.2 does to the rules, recorded from its ufw-init-functions and from
# the commands of `ufw enable`, `allow`, `reload` and `disable`. $1 is the step;
# $I4 and $I6 are the commands.
set -eu

family() { # calls $1 with the command and ufw's number of the family
	"$1" "$I4" ""
	"$1" "$I6" 6
}

probe() { # each ufw command tries what the kernel can do in a chain of its own
	chain=ufw$2-caps-test
	$1 -N "$chain"
	$1 -A "$chain" -m conntrack --ctstate NEW -m recent --set
	$1 -A "$chain" -m conntrack --ctstate NEW -m recent --update --seconds 30 --hitcount 6
	$1 -F "$chain"
	$1 -X "$chain"
}

chains() {
	echo "*filter"
	for c in before-logging before after after-logging reject track; do
		for hook in input output forward; do echo ":ufw$1-$c-$hook - [0:0]"; done
	done
	for hook in INPUT OUTPUT FORWARD; do
		for c in before-logging before after after-logging reject track; do
			echo "-A $hook -j ufw$1-$c-$(echo $hook | tr A-Z a-z)"
		done
	done
	echo COMMIT
}

start() {
	if ! $1 -L "ufw$2-before-logging-input" -n >/dev/null 2>&1; then
		chains "$2" | $1-restore -n
	fi
	printf '%s\n' "*filter" "-A ufw$2-track-output -p tcp -m conntrack --ctstate NEW -j ACCEPT" \
		"-A ufw$2-track-output -p udp -m conntrack --ctstate NEW -j ACCEPT" COMMIT | $1-restore -n
	printf '%s\n' "*filter" ":ufw$2-logging-deny - [0:0]" ":ufw$2-logging-allow - [0:0]" COMMIT | $1-restore -n
	printf '%s\n' "*filter" ":ufw$2-skip-to-policy-input - [0:0]" "-A ufw$2-skip-to-policy-input -j DROP" COMMIT | $1-restore -n
	printf '%s\n' "*filter" ":ufw$2-before-input - [0:0]" ":ufw$2-before-output - [0:0]" ":ufw$2-before-forward - [0:0]" \
		"-A ufw$2-before-input -i lo -j ACCEPT" "-A ufw$2-before-output -o lo -j ACCEPT" \
		"-A ufw$2-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT" \
		"-A ufw$2-before-output -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT" \
		"-A ufw$2-before-input -m conntrack --ctstate INVALID -j ufw$2-logging-deny" \
		"-A ufw$2-before-input -m conntrack --ctstate INVALID -j DROP" COMMIT | $1-restore -n
	printf '%s\n' "*filter" ":ufw$2-after-input - [0:0]" \
		"-A ufw$2-after-input -p udp --dport 137 -j ufw$2-skip-to-policy-input" COMMIT | $1-restore -n
	printf '%s\n' "*filter" ":ufw$2-user-input - [0:0]" ":ufw$2-user-output - [0:0]" ":ufw$2-user-forward - [0:0]" \
		"-A ufw$2-before-input -j ufw$2-user-input" "-A ufw$2-before-output -j ufw$2-user-output" \
		"-A ufw$2-user-input -p tcp --dport 9100 -j ACCEPT" COMMIT | $1-restore -n
	$1 -P INPUT DROP
	$1 -P OUTPUT ACCEPT
	$1 -P FORWARD DROP
	$1 -F "ufw$2-after-logging-input"
	$1 -Z "ufw$2-after-logging-input"
	$1 -A "ufw$2-after-logging-input" -j LOG --log-prefix "[UFW BLOCK] " -m limit --limit 3/min --limit-burst 10
}

allow() { $1 -A "ufw$2-user-input" -p tcp --dport 22 -j ACCEPT; }

# The primary chains linger, empty, so that their place is kept.
stop() {
	for c in before-logging before after after-logging reject track user; do
		for hook in input output forward; do
			$1 -F "ufw$2-$c-$hook"
		done
	done
	for c in logging-deny logging-allow skip-to-policy-input; do $1 -F "ufw$2-$c"; done
	for c in logging-deny logging-allow skip-to-policy-input user-input user-output user-forward; do $1 -X "ufw$2-$c"; done
	for hook in INPUT OUTPUT FORWARD; do $1 -P $hook ACCEPT; done
}

case $1 in
enable) family probe && family start ;;
allow) family probe && family allow ;;
reload) family probe && family stop && family start ;;
disable) family probe && family stop ;;
esac
