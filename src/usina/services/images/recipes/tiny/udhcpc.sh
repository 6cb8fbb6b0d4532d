#!/bin/sh
# Applies a DHCP lease. The card found first keeps the preferred default route.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
case "$1" in
    deconfig)
        ip addr flush dev "$interface"
        ;;
    bound | renew)
        ip addr replace "$ip/${mask:-24}" dev "$interface"
        metric=$((100 + $(cat "/sys/class/net/$interface/ifindex")))
        for gateway in $router; do
            ip route replace default via "$gateway" dev "$interface" metric $metric
            break
        done
        [ -n "$dns" ] && {
            [ -n "$domain" ] && echo "search $domain"
            for server in $dns; do echo "nameserver $server"; done
        } > /etc/resolv.conf
        ;;
esac
exit 0
