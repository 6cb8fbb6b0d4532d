#!/bin/sh
# The power button: what is mounted is written out, and the machine goes off.
echo "usina-tiny: powering off" > /dev/console
sync
umount -a -r 2>/dev/null
poweroff -f
