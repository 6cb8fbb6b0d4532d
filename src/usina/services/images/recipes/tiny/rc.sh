#!/bin/sh
# Brings the appliance up: modules, seed, name, keys, network, SSH. Run once by busybox init.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 pts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs tmp /run
echo 1 > /proc/sys/kernel/printk

while read -r module; do
    insmod "/lib/modules/$module" 2>/dev/null
done < /etc/modules

# The seed is the filesystem labelled "cidata" (NoCloud); a CD drive may need a moment to be seen.
seed=/run/seed
mkdir -p $seed
tries=0
while [ $tries -lt 20 ]; do
    device=$(findfs LABEL=cidata 2>/dev/null || findfs LABEL=CIDATA 2>/dev/null) && break
    case "$(cat /proc/cmdline)" in *usina.seed=no*) break ;; esac
    tries=$((tries + 1))
    sleep 0.1
done
[ -n "$device" ] && mount -o ro "$device" $seed 2>/dev/null

name=$(sed -n 's/.*local-hostname"\{0,1\} *: *"\{0,1\}\([A-Za-z0-9.-]\{1,\}\).*/\1/p' $seed/meta-data 2>/dev/null | head -n 1)
hostname "${name:-tiny}"
hostname > /etc/hostname
echo "127.0.0.1 localhost $(hostname)" > /etc/hosts

mkdir -p /root/.ssh
cat $seed/meta-data $seed/user-data 2>/dev/null |
    grep -Eo '(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+ +[A-Za-z0-9+/=]{40,}' | sort -u > /root/.ssh/authorized_keys
chmod 700 /root /root/.ssh
chmod 600 /root/.ssh/authorized_keys

ip link set lo up
/etc/network &
acpid -f -c /etc/acpi > /dev/null 2>&1 &
mkdir -p /etc/dropbear
dropbear -R -s -p 22 2> /run/dropbear.log

if [ "$(head -c 2 $seed/user-data 2>/dev/null)" = "#!" ]; then
    cp $seed/user-data /run/user-data
    chmod 700 /run/user-data
    /run/user-data > /run/user-data.log 2>&1 &
fi

echo "usina-tiny ready: $(hostname), up $(cut -d ' ' -f 1 /proc/uptime) s" > /dev/console
