#!/bin/sh
# Asks for an address on every network card, also on those plugged in later.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mkdir -p /run/net
while true; do
    for path in /sys/class/net/eth*; do
        card=${path##*/}
        if [ -e "$path" ] && [ ! -e "/run/net/$card" ]; then
            : > "/run/net/$card"
            ip link set "$card" up
            udhcpc -f -R -S -t 20 -T 1 -A 2 -i "$card" -p "/run/udhcpc.$card.pid" \
                -x "hostname:$(hostname)" -s /etc/udhcpc > /dev/null 2>&1 &
        fi
    done
    for mark in /run/net/*; do
        card=${mark##*/}
        if [ -e "$mark" ] && [ ! -e "/sys/class/net/$card" ]; then
            kill "$(cat "/run/udhcpc.$card.pid")" 2>/dev/null
            rm -f "$mark" "/run/udhcpc.$card.pid"
        fi
    done
    sleep 1
done
