# Run by tests/run.rs in network and mount namespaces of its own: a host with a firewall, a
# neighbour that can be reached by routing, and a name server on loopback.
sandbox=$1 folder=$2
mount -t tmpfs tmpfs /run && mkdir -p /run/netns
mount --bind /run/netns /run/netns && mount --make-shared /run/netns
ip link set lo up
ip netns add outside
ip link add up0 type veth peer name up1 netns outside
ip addr add 192.168.77.1/24 dev up0
ip link set up0 up
ip -n outside addr add 192.168.77.2/24 dev up1
ip -n outside link set up1 up
ip -n outside link set lo up
iptables -P FORWARD DROP

background=
"$sandbox" name-server 127.0.0.1:53 192.168.77.2 & names=$!
echo 'nameserver 127.0.0.1' > "$folder/resolv.conf"
mount --bind "$folder/resolv.conf" /etc/resolv.conf
ip netns exec outside busybox nc -ll -p 8000 -e echo 'the neighbour answers' &
background="$background $!"
busybox nc -ll -p 8001 -e echo 'the host answers' & background="$background $!"
until grep -q ':1F41 .* 0A ' /proc/net/tcp6 /proc/net/tcp; do :; done
until ip netns exec outside cat /proc/net/tcp6 /proc/net/tcp | grep -q ':1F40 .* 0A '; do :; done
until grep -q ':0035 ' /proc/net/udp; do :; done

"$sandbox" "$folder/root" "$folder/state" isolated sh -c '
    nc -w 5 name.example 8000
    gateway=$(grep nameserver /etc/resolv.conf | sed "s/nameserver //")
    for address in $gateway 192.168.77.1 127.0.0.1 169.254.169.254; do
        nc -w 1 $address 8001 2>/dev/null || echo "$address is silent"
    done'
echo "status $?"
iptables -S
iptables -t nat -S POSTROUTING
echo "bridges: $(ip -o link | grep -c refit)"

echo 'Who is bounded reaches what it may, and hears of nothing else.'
# All of a container in one stream: of two, either may be read first.
only() { "$sandbox" "$folder/root" "$folder/state" "only=$1" sh -c "exec 2>&1; $2" 2>&1; }
only name.example '
    nc -w 2 192.168.77.2 8000 || echo not yet
    nc -w 5 name.example 8000
    nc -w 2 192.168.77.2 8000
    nc -w 2 other.example 8000
    nc -w 1 192.168.77.1 8001 || echo not the host
    grep CapBnd /proc/self/status'
only '*.example:8000,!192.168.77.1:8001' '
    nc -w 5 name.example 8000; nc -w 1 name.example 8001 || echo not that port
    nc -w 5 192.168.77.1 8001'
only 192.168.77.0/24 'nc -w 5 192.168.77.2 8000; nc -w 2 name.example 8000'
only '' 'ip -o link | grep -c :; nc -w 2 192.168.77.2 8000'
iptables -S | grep -c REFIT

echo 'A killed server leaves a bridge and rules; the next removes them.'
"$sandbox" "$folder/root" "$folder/state" only=10.0.0.0/8:80 sleep 1000 & server=$!
until iptables -S | grep -q REFIT0-TO; do :; done
echo "bridges: $(ip -o link | grep -c ' refit0:')"
echo 'What a container says about addresses changes nothing.'
until ip neighbour show dev refit0 | grep .; do :; done
bridge fdb show br refit0 | grep -o '^02:.* dev refit0v3 master refit0.*'
bridge -d link show dev refit0v3 | grep -oE '(isolated|learning) (on|off)'
kill -9 $server
wait $server 2>/dev/null
"$sandbox" "$folder/root" "$folder/state" none true
iptables -S
echo "bridges: $(ip -o link | grep -c refit)"

echo 'Another name server has the port on all addresses.'
kill $names
wait $names 2>/dev/null
"$sandbox" name-server 0.0.0.0:53 192.168.77.2 & background="$background $!"
until grep -q '00000000:0035 ' /proc/net/udp; do :; done
"$sandbox" "$folder/root" "$folder/state" isolated nc -w 5 name.example 8000
iptables -t nat -S
kill $background
