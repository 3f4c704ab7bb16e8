# What dockerd 20.10 does to the rules when it starts with iptables and ip6tables
# on, when a container with a published port starts and ends, and when dockerd
# starts again: it removes what an earlier one left, and inserts anew. $1 is the
# step; $I4 and $I6 are the commands.
set -eu

there() { $i --wait "$@" >/dev/null 2>&1; }

# insert FORWARD RULE: unless it is there, at the top.
insert() {
	chain=$1
	shift
	there -C "$chain" "$@" || $i --wait -I "$chain" "$@"
}

# first RULE: taken away and put back at the top of FORWARD, as at each start.
first() {
	! there -C FORWARD "$@" || $i --wait -D FORWARD "$@"
	$i --wait -I FORWARD "$@"
}

clean() {
	$i --wait -t nat -D PREROUTING -m addrtype --dst-type LOCAL -j DOCKER 2>/dev/null || true
	$i --wait -t nat -D OUTPUT -m addrtype --dst-type LOCAL ! --dst "$lo" -j DOCKER 2>/dev/null || true
	for c in DOCKER DOCKER-ISOLATION-STAGE-1; do
		$i --wait -t nat -F $c 2>/dev/null || true
		$i --wait -t nat -X $c 2>/dev/null || true
		$i --wait -t filter -F $c 2>/dev/null || true
		$i --wait -t filter -X $c 2>/dev/null || true
	done
}

start() {
	clean
	$i --wait -t nat -N DOCKER 2>/dev/null || true
	for c in DOCKER DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2 DOCKER-USER; do
		$i --wait -t filter -N $c 2>/dev/null || true
	done
	for c in DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2 DOCKER-USER; do there -C $c -j RETURN || $i --wait -A $c -j RETURN; done
	there -t nat -C POSTROUTING -s "$net" ! -o docker0 -j MASQUERADE || $i --wait -t nat -I POSTROUTING -s "$net" ! -o docker0 -j MASQUERADE
	there -t nat -C DOCKER -i docker0 -j RETURN || $i --wait -t nat -I DOCKER -i docker0 -j RETURN
	insert FORWARD -i docker0 -o docker0 -j ACCEPT
	insert FORWARD -i docker0 ! -o docker0 -j ACCEPT
	there -t nat -C PREROUTING -m addrtype --dst-type LOCAL -j DOCKER || $i --wait -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
	there -t nat -C OUTPUT -m addrtype --dst-type LOCAL ! --dst "$lo" -j DOCKER ||
		$i --wait -t nat -A OUTPUT -m addrtype --dst-type LOCAL ! --dst "$lo" -j DOCKER
	insert FORWARD -o docker0 -j DOCKER
	insert FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
	first -j DOCKER-ISOLATION-STAGE-1
	insert DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
	insert DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
	first -j DOCKER-USER
	$i --wait -P FORWARD DROP
}

publish() { # -A or -D
	$i --wait -t nat "$1" DOCKER -p tcp -d 0/0 --dport 8080 -j DNAT --to-destination "$container:80" ! -i docker0
	$i --wait -t filter "$1" DOCKER ! -i docker0 -o docker0 -p tcp -d "$container" --dport 80 -j ACCEPT
	$i --wait -t nat "$1" POSTROUTING -p tcp -s "$container" -d "$container" --dport 80 -j MASQUERADE
}

i=$I4 net=172.17.0.0/16 container=172.17.0.2 lo=127.0.0.0/8
case $1 in
start | restart) start ;;
publish) publish -A ;;
unpublish) publish -D ;;
esac
i=$I6 net=fd00:d0c::/64 lo=::1
case $1 in
start | restart) start ;;
esac
