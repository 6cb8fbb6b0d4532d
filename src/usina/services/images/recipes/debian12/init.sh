#!/bin/sh
# Finds the root disk and hands over to systemd. Everything else is udev's.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

while read -r module; do
    insmod "/lib/modules/$module" 2>/dev/null
done < /etc/modules

tries=0
while [ $tries -lt 100 ]; do
    root=$(findfs LABEL=usina-root 2>/dev/null) && break
    tries=$((tries + 1))
    sleep 0.1
done
if [ -z "$root" ]; then
    echo "usina: no disk labelled usina-root" > /dev/console
    sleep 5
    poweroff -f
fi

mkdir -p /root
mount -t ext4 -o rw,relatime "$root" /root
mount --move /dev /root/dev
umount /proc /sys
exec switch_root /root /sbin/init
