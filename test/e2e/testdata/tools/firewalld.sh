# What firewalld 1.3 does to the rules when it starts and reloads, for each of its
# two backends: with nftables it has a table of its own, which is deleted and
# loaded in one transaction; with iptables it empties every table first, chains of
# others included. $1 is the step; $I4 and $I6 are the commands, $FIREWALLD is
# nftables or iptables.
set -eu

table() {
	cat <<-END
	table inet firewalld {
		chain filter_PREROUTING {
			type filter hook prerouting priority filter + 10; policy accept;
			icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
		}
		chain filter_INPUT {
			type filter hook input priority filter + 10; policy accept;
			ct state { established, related } accept
			iifname "lo" accept
			ct state invalid drop
			jump filter_IN_public
			reject with icmpx admin-prohibited
		}
		chain filter_FORWARD {
			type filter hook forward priority filter + 10; policy accept;
			ct state { established, related } accept
			reject with icmpx admin-prohibited
		}
		chain filter_OUTPUT {
			type filter hook output priority filter + 10; policy accept;
			ct state { established, related } accept
		}
		chain filter_IN_public {
			jump filter_IN_public_allow
			meta l4proto { icmp, ipv6-icmp } accept
		}
		chain filter_IN_public_allow {
			tcp dport 22 accept
			udp dport 546 ip6 daddr fe80::/64 accept
		}
	}
	END
}

nftables() {
	{
		echo 'add table inet firewalld'
		echo 'delete table inet firewalld'
		[ "$1" = stop ] || table
	} | nft -f -
}

flush() { printf '%s\n' "*$1" -F -X -Z COMMIT; }

rules() {
	printf '%s\n' '*filter' '-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT' '-A INPUT -i lo -j ACCEPT' \
		'-A INPUT -m conntrack --ctstate INVALID -j DROP' '-N INPUT_direct' '-A INPUT -j INPUT_direct' \
		'-N INPUT_ZONES' '-A INPUT -j INPUT_ZONES' "-A INPUT -j REJECT --reject-with $1" \
		'-N FORWARD_direct' '-A FORWARD -j FORWARD_direct' "-A FORWARD -j REJECT --reject-with $1" \
		'-N OUTPUT_direct' '-A OUTPUT -j OUTPUT_direct' \
		'-N IN_public' '-N IN_public_allow' '-A IN_public -j IN_public_allow' \
		'-A IN_public_allow -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW,UNTRACKED -j ACCEPT' \
		'-A INPUT_ZONES -j IN_public' COMMIT
}

iptables() {
	for i in "$I4" "$I6"; do
		for chain in INPUT OUTPUT FORWARD; do $i -w -P $chain DROP; done # while it reloads
		for t in filter nat mangle raw; do flush $t | $i-restore -w -n; done
		reject=icmp-host-prohibited
		[ "$i" = "$I4" ] || reject=icmp6-adm-prohibited
		[ "$1" = stop ] || rules $reject | $i-restore -w -n
		for chain in INPUT OUTPUT FORWARD; do $i -w -P $chain ACCEPT; done
	done
}

$FIREWALLD "$1"
